"""A language model that grades each response by itself."""

from typing import final

import torch

from lit_align.annotators.asking import Asker
from lit_align.annotators.template import Template, text_of
from lit_align.functional.verdicts import centred_score, expected_score
from lit_align.types import Annotation, Annotator, JudgeBackend, Rollouts

OPTIONS = tuple(str(i) for i in range(1, 11))


@final
class ScoringJudge(Annotator):
    """Asks for a grade from 1 to 10 and scores each response by the expected one, ``(sum_i i p_i - 5.5) / 4.5``, in [-1, 1].

    ``p`` are the backend's probabilities of the ten grades, renormalised; nothing is generated and nothing is random. Their sum before
    is the response's ``mass``. One question per distinct response.

    Args:
        backend: the language model.
        template: ``tldr``, ``helpfulness``, ``harmlessness``, or the path of a YAML file of your own.
        min_mass: probability that the ten grades must have together; a response below it is invalid.

    Raises:
        UserError: if there is no such template, or it has other places than ``{prompt}`` and ``{response}``.
    """

    def __init__(self, backend: JudgeBackend, template: str, min_mass: float = 0.5) -> None:
        self.backend, self.template = backend, Template.load(template, "scoring")
        self.asker = Asker("ScoringJudge", backend, OPTIONS, min_mass)
        self.identity = f"ScoringJudge({backend.identity}, {self.template.identity}, min_mass={min_mass})"

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
        scores = centred_score(expected_score(logps)).where(enough, 0.0).float()
        return Annotation(scores=scores, valid=enough, mass=mass.float(), annotator_version=self.version)
