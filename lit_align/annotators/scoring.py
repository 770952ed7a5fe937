"""A language model that grades each response by itself."""

import re
from collections.abc import Sequence
from itertools import product
from typing import final

from lit_align.annotators.asking import GRADES, Asker, Judge, Verdict, average, is_hard, load_templates
from lit_align.types import Annotation, JudgeBackend, Rollouts, UserError


@final
class ScoringJudge(Judge):
    """Asks for a grade from 1 to 10 and scores each response by the expected one, ``(sum_i i p_i - 5.5) / 4.5``, in [-1, 1].

    ``p`` are the backend's probabilities of the ten grades, renormalised; nothing is generated and nothing is random. Their sum before
    is the response's ``mass``. One question per distinct response and template. On another ``scale`` i is the place of a grade, from the
    worst, 1, to the best, n, and a score its distance from the middle, ``(sum_i i p_i - (n + 1) / 2) / ((n - 1) / 2)``.

    Args:
        backend: the language model.
        template: the name of a shipped template, such as ``helpfulness``, or the path of a YAML file of your own. A list is as many votes:
            the mean over the templates that it answered.
        min_mass: probability that the grades must have together; an answer below it does not count, and a response without any other is
            invalid.
        verdict: ``soft`` is the expected grade, ``hard`` the likeliest.
        scale: the grades from the worst to the best, as the templates ask for them: digits or letters where a backend reads single
            tokens and "10" is two.

    Raises:
        UserError: if there is no such template, it has other places than ``{prompt}``, ``{response}`` and ``{reference}``, or another scale
            than it speaks of is given.
    """

    def __init__(
        self,
        backend: JudgeBackend,
        template: str | Sequence[str],
        min_mass: float = 0.5,
        verdict: Verdict = "soft",
        scale: Sequence[str] = GRADES,
    ) -> None:
        self.backend, self.templates, self.hard = backend, load_templates(template, "scoring"), is_hard("ScoringJudge", verdict)
        self.scale = tuple(scale)
        self._check_scale()
        self.asker = Asker("ScoringJudge", backend, self.scale, min_mass)
        words = ", ".join(template.identity for template in self.templates)
        settings = f"min_mass={min_mass}, verdict={verdict}, scale={' '.join(self.scale)}"
        self.identity = f"ScoringJudge({backend.identity}, {words}, {settings})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores and mass ``[B, K]`` on the CPU."""
        questions = [
            template.ask(prompt, response=text)
            for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)
            for text in texts
            for template in self.templates
        ]
        shape = *rollouts.response_tokens.shape[:2], len(self.templates)
        grades, mass, enough = self.asker.grade(questions, shape, self.hard)  # [B, K, templates]
        scores, valid = average(grades, enough), enough.any(-1)
        return Annotation(scores=scores.where(valid, 0.0).float(), valid=valid, mass=mass.mean(-1).float(), annotator_version=self.version)

    def _check_scale(self) -> None:
        if (
            len(self.scale) < 2
            or len(set(self.scale)) < len(self.scale)
            or any(not grade or grade.strip() != grade for grade in self.scale)
        ):
            raise UserError(
                f"ScoringJudge: scale should be at least two different grades from the worst to the best, got {list(self.scale)}."
            )
        for template, grade in product(self.templates, (self.scale[0], self.scale[-1])):
            if self.scale != GRADES and not re.search(rf"(?<!\w){re.escape(grade)}(?!\w)", template.ending):
                raise UserError(
                    f"ScoringJudge: scale goes from {self.scale[0]!r} to {self.scale[-1]!r}, but {grade!r} is nowhere in the ending of "
                    f"template {template.name}, so that the model would be asked for other grades. Ask for these, in a template of "
                    "your own."
                )
