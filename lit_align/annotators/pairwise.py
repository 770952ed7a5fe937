"""A language model that compares responses two at a time."""

from collections.abc import Sequence
from typing import final

from lit_align.annotators.asking import Judge, Verdict, load_templates
from lit_align.annotators.comparing import Comparison
from lit_align.types import Annotation, JudgeBackend, Rollouts


@final
class PairwiseJudge(Judge):
    """Asks which of two responses is better, in both orders, and keeps the average: ``preferences[b, i, j]`` is P(i beats j),
    ``seen_first[b, i, j]`` the same where i was shown first, so that ``p(i, j) = (f(i, j) + 1 - f(j, i)) / 2`` up to ties.

    A response's score is the mean of its row over the opponents that it met, in [0, 1]. Two questions per pair and template: K (K - 1) per
    prompt if all meet all.

    Args:
        backend: the language model.
        template: the name of a shipped template, such as ``helpfulness``, or the path of a YAML file of your own. A list is as many votes:
            the mean over the templates that it answered.
        tie_margin: ``|p - 1/2|`` up to which a pair is a tie, and p exactly 1/2.
        opponents: how many others each response meets at least; None is all of them. Response i meets i + 1, i + 2, ... modulo K, up to
            half that many, and is met by as many, so that an odd number is rounded up.
        min_mass: probability that "1" and "2" must have together; an answer below it does not count, and a vote needs both orders.
        verdict: ``soft`` keeps the probability, ``hard`` makes it 1 for the winner, 0 for the loser and 1/2 for a tie, after the average
            over orders and votes.

    Raises:
        UserError: if there is no such template, it has other places than ``{prompt}``, ``{response_1}``, ``{response_2}`` and
            ``{reference}``, a number is out of range, or there is only one response to a prompt.
    """

    def __init__(
        self,
        backend: JudgeBackend,
        template: str | Sequence[str],
        tie_margin: float = 1e-3,
        opponents: int | None = None,
        min_mass: float = 0.5,
        verdict: Verdict = "soft",
    ) -> None:
        self.backend, self.templates = backend, load_templates(template, "pairwise")
        self.comparison = Comparison("PairwiseJudge", backend, tie_margin, opponents, min_mass, verdict)
        self.asker = self.comparison.asker
        words = ", ".join(template.identity for template in self.templates)
        self.identity = f"PairwiseJudge({backend.identity}, {words}, {self.comparison.identity})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Preferences, averaged and as said in each order, ``[B, K, K]``, scores and mass ``[B, K]`` on the CPU."""

        def questions(row: int, pair: tuple[int, int], first: str, second: str) -> list[str]:
            return [template.ask(rollouts.prompts[row], response_1=first, response_2=second) for template in self.templates]

        return self.comparison.annotate(rollouts, questions, self.version)
