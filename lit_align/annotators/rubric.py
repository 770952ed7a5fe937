"""A language model that grades each response in several respects."""

import json
from collections.abc import Mapping
from typing import final

import torch

from lit_align.annotators.asking import GRADES, Asker, Judge, Verdict, is_hard
from lit_align.annotators.template import Template, digest
from lit_align.functional.verdicts import weighted_mean
from lit_align.types import Annotation, JudgeBackend, Rollouts, UserError

TAKEN = ("mean", "std", "distribution")  # quantities of the whole reward, which are logged under the same roof


@final
class Rubric(Judge):
    r"""Asks for a grade from 1 to 10 in each of several respects, on the same scale as `ScoringJudge`, and scores by their weighted mean.

    .. math:: r = \frac{\sum_i w_i s_i}{\sum_i w_i} \in [-1, 1]

    The grade in each respect is in ``parts`` and logged as ``reward/<name>``. One question per distinct response and respect. Where the
    backend would not answer, the respect drops out of both sums; a response is invalid if none is left.

    Args:
        backend: the language model.
        aspects: what counts, by a short name.
        weights: of aspects by their names, positive; 1 for those left out.
        template: ``general``, or the path of a YAML file of your own, with the places ``{prompt}``, ``{aspect}`` and ``{response}``.
        min_mass: probability that the ten grades must have together; an answer below it does not count.
        verdict: ``soft`` is the expected grade, ``hard`` the likeliest.

    Raises:
        UserError: if there is no aspect, one is named like a quantity of the reward (``mean``, ``std``, ``distribution``) or with a dot,
            a weight is not positive or of no aspect; see also `ScoringJudge`.
    """

    def __init__(
        self,
        backend: JudgeBackend,
        aspects: Mapping[str, str],
        weights: Mapping[str, float] | None = None,
        template: str = "general",
        min_mass: float = 0.5,
        verdict: Verdict = "soft",
    ) -> None:
        weights = weights or {}
        _check(aspects, weights)
        self.backend, self.template, self.hard = backend, Template.load(template, "rubric"), is_hard("Rubric", verdict)
        self.aspects = dict(aspects)
        self.weights = torch.tensor([weights.get(name, 1.0) for name in aspects], dtype=torch.float64)  # [aspects]
        self.asker = Asker("Rubric", backend, GRADES, min_mass)
        counts = f"{', '.join(aspects)}:{digest(json.dumps([list(aspects.items()), self.weights.tolist()]))}"
        self.identity = f"Rubric({backend.identity}, {self.template.identity}, {counts}, min_mass={min_mass}, verdict={verdict})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores, mass and every part ``[B, K]`` on the CPU; a part is NaN where there is no answer."""
        questions = [
            self.template.ask(prompt, aspect=aspect, response=text)
            for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)
            for text in texts
            for aspect in self.aspects.values()
        ]
        shape = *rollouts.response_tokens.shape[:2], len(self.aspects)
        grades, mass, enough = self.asker.grade(questions, shape, self.hard)  # [B, K, aspects]
        valid = enough.any(-1)
        parts = grades.where(enough, torch.nan).float().unbind(-1)
        return Annotation(
            scores=weighted_mean(grades, self.weights, enough).where(valid, 0.0).float(),
            valid=valid,
            mass=mass.mean(-1).float(),
            parts=dict(zip(self.aspects, parts, strict=True)),
            annotator_version=self.version,
        )


def _check(aspects: Mapping[str, str], weights: Mapping[str, float]) -> None:
    if not aspects:
        raise UserError("Rubric: aspects should say what counts, as `name: question`, got none.")
    for name in aspects:
        if name in TAKEN or "." in name:
            raise UserError(f"Rubric: aspects has the name {name!r}, but reward/{name} is no free name of a metric. Choose another word.")
    for name, weight in weights.items():
        if name not in aspects:
            raise UserError(f"Rubric: weights has {name!r}, which is no aspect. The aspects are {', '.join(aspects)}.")
        if not weight > 0:
            raise UserError(f"Rubric: the weight of {name!r} should be positive, got {weight}. Leave the aspect out if it does not count.")
