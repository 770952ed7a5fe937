"""A language model that grades each response by itself."""

from collections.abc import Sequence
from typing import final

from lit_align.annotators.asking import GRADES, Asker, Judge, Verdict, average, is_hard, load_templates
from lit_align.types import Annotation, JudgeBackend, Rollouts


@final
class ScoringJudge(Judge):
    """Asks for a grade from 1 to 10 and scores each response by the expected one, ``(sum_i i p_i - 5.5) / 4.5``, in [-1, 1].

    ``p`` are the backend's probabilities of the ten grades, renormalised; nothing is generated and nothing is random. Their sum before
    is the response's ``mass``. One question per distinct response and template.

    Args:
        backend: the language model.
        template: the name of a shipped template, such as ``helpfulness``, or the path of a YAML file of your own. A list is as many votes:
            the mean over the templates that it answered.
        min_mass: probability that the ten grades must have together; an answer below it does not count, and a response without any other is
            invalid.
        verdict: ``soft`` is the expected grade, ``hard`` the likeliest.

    Raises:
        UserError: if there is no such template, or it has other places than ``{prompt}``, ``{response}`` and ``{reference}``.
    """

    def __init__(self, backend: JudgeBackend, template: str | Sequence[str], min_mass: float = 0.5, verdict: Verdict = "soft") -> None:
        self.backend, self.templates, self.hard = backend, load_templates(template, "scoring"), is_hard("ScoringJudge", verdict)
        self.asker = Asker("ScoringJudge", backend, GRADES, min_mass)
        words = ", ".join(template.identity for template in self.templates)
        self.identity = f"ScoringJudge({backend.identity}, {words}, min_mass={min_mass}, verdict={verdict})"

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
