"""A language model that grades each response by itself."""

import re
from collections.abc import Sequence
from typing import final

import torch

from lit_align.annotators.asking import Asker
from lit_align.annotators.template import Template, text_of
from lit_align.functional.verdicts import centred_score, expected_score
from lit_align.types import Annotation, Annotator, JudgeBackend, Rollouts, UserError

OPTIONS = tuple(str(i) for i in range(1, 11))


@final
class ScoringJudge(Annotator):
    """Asks for a grade from 1 to 10 and scores each response by the expected one, ``(sum_i i p_i - 5.5) / 4.5``, in [-1, 1].

    ``p`` are the backend's probabilities of the ten grades, renormalised. Their sum before is the response's ``mass``. One question per
    distinct response. On another ``scale`` i is the place of a grade, from the worst, 1, to the best, n, and a score its distance from
    the middle, ``(sum_i i p_i - (n + 1) / 2) / ((n - 1) / 2)``.

    Args:
        backend: the language model.
        template: ``tldr``, ``helpfulness``, ``harmlessness``, or the path of a YAML file of your own.
        min_mass: probability that the grades must have together; a response below it is invalid.
        scale: the grades from the worst to the best, as the template asks for them: digits or letters where a backend reads single
            tokens and "10" is two.

    Raises:
        UserError: if there is no such template, it has other places than ``{prompt}`` and ``{response}``, or another scale than it speaks
            of is given.
    """

    def __init__(self, backend: JudgeBackend, template: str, min_mass: float = 0.5, scale: Sequence[str] = OPTIONS) -> None:
        self.backend, self.template, self.scale = backend, Template.load(template, "scoring"), tuple(scale)
        self._check_scale()
        self.asker = Asker("ScoringJudge", backend, self.scale, min_mass)
        self.waits = backend.waits
        self.identity = f"ScoringJudge({backend.identity}, {self.template.identity}, min_mass={min_mass}, scale={' '.join(self.scale)})"

    def setup(self, device: torch.device) -> None:
        """Wake the backend."""
        self.backend.setup(device)

    def close(self) -> None:
        """Let go of it."""
        self.backend.close()

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores and mass ``[B, K]`` on the CPU."""
        questions = [
            self.template.render({"prompt": text_of(prompt), "response": text})
            for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True)
            for text in texts
        ]
        shape = rollouts.response_tokens.shape[:2]
        logps, mass, enough = (answer.reshape(*shape, *answer.shape[1:]) for answer in self.asker.ask(questions))
        scores = centred_score(expected_score(logps), best=len(self.scale)).where(enough, 0.0).float()
        return Annotation(scores=scores, valid=enough, mass=mass.float(), annotator_version=self.version)

    def _check_scale(self) -> None:
        if (
            len(self.scale) < 2
            or len(set(self.scale)) < len(self.scale)
            or any(not grade or grade.strip() != grade for grade in self.scale)
        ):
            raise UserError(
                f"ScoringJudge: scale should be at least two different grades from the worst to the best, got {list(self.scale)}."
            )
        for grade in (self.scale[0], self.scale[-1]):
            if self.scale != OPTIONS and not re.search(rf"(?<!\w){re.escape(grade)}(?!\w)", self.template.ending):
                raise UserError(
                    f"ScoringJudge: scale goes from {self.scale[0]!r} to {self.scale[-1]!r}, but {grade!r} is nowhere in the ending of "
                    f"template {self.template.name}, so that the model would be asked for other grades. Ask for these, in a template of "
                    "your own."
                )
