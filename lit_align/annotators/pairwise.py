"""A language model that compares responses two at a time."""

import math
from typing import final

import torch
from torch import Tensor

from lit_align.annotators.asking import Asker
from lit_align.annotators.template import Template, text_of
from lit_align.functional.verdicts import swap_averaged
from lit_align.types import Annotation, Annotator, JudgeBackend, Prompt, Rollouts, UserError

OPTIONS = ("1", "2")


@final
class PairwiseJudge(Annotator):
    """Asks which of two responses is better, in both orders, and keeps the average: ``preferences[b, i, j]`` is P(i beats j),
    ``seen_first[b, i, j]`` the same where i was shown first, so that ``p(i, j) = (f(i, j) + 1 - f(j, i)) / 2`` up to ties.

    A response's score is the mean of its row over the opponents that it met, in [0, 1]. Two questions per pair: K (K - 1) per prompt if
    all meet all.

    Args:
        backend: the language model.
        template: ``tldr``, ``helpfulness``, ``harmlessness``, or the path of a YAML file of your own.
        tie_margin: ``|p - 1/2|`` up to which a pair is a tie, and p exactly 1/2.
        opponents: how many others each response meets at least; None is all of them. Response i meets i + 1, i + 2, ... modulo K, up to
            half that many, and is met by as many, so that an odd number is rounded up.
        min_mass: probability that "1" and "2" must have together; an answer below it does not count, and a pair needs both orders.

    Raises:
        UserError: if there is no such template, it has other places than ``{prompt}``, ``{response_1}`` and ``{response_2}``, a number is
            out of range, or there is only one response to a prompt.
    """

    def __init__(
        self, backend: JudgeBackend, template: str, tie_margin: float = 1e-3, opponents: int | None = None, min_mass: float = 0.5
    ) -> None:
        if not 0 <= tie_margin < 0.5:
            raise UserError(f"PairwiseJudge: tie_margin should be at least 0 and less than 0.5, got {tie_margin}.")
        if opponents is not None and opponents < 1:
            raise UserError(f"PairwiseJudge: opponents should be at least 1, or null for all, got {opponents}.")
        self.backend, self.template = backend, Template.load(template, "pairwise")
        self.tie_margin, self.opponents = tie_margin, opponents
        self.asker = Asker("PairwiseJudge", backend, OPTIONS, min_mass)
        settings = f"tie_margin={tie_margin}, opponents={opponents}, min_mass={min_mass}"
        self.identity = f"PairwiseJudge({backend.identity}, {self.template.identity}, {settings})"

    def setup(self, device: torch.device) -> None:
        """Wake the backend."""
        self.backend.setup(device)

    def close(self) -> None:
        """Let go of it."""
        self.backend.close()

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Preferences, averaged and as said in each order, ``[B, K, K]``, scores and mass ``[B, K]`` on the CPU."""
        b, k = rollouts.response_tokens.shape[:2]
        if k < 2:
            raise UserError(f"PairwiseJudge compares responses to the same prompt and needs at least 2, got responses_per_prompt = {k}.")
        first, second = torch.tensor(self._pairs(k)).T  # [pairs]
        matches = [(row, i, j) for row in range(b) for i, j in zip(first.tolist(), second.tolist(), strict=True)]
        said = [(rollouts.prompts[row], rollouts.texts[row][i], rollouts.texts[row][j]) for row, i, j in matches]
        orders = [self._question(p, x, y) for p, x, y in said], [self._question(p, y, x) for p, x, y in said]
        logps, mass, enough = (answer.unflatten(0, (2, b, -1)) for answer in self.asker.ask([*orders[0], *orders[1]]))
        p = swap_averaged(logps[0], logps[1], tie_margin=self.tie_margin).where(enough.all(0), math.nan)  # [B, pairs]
        preferences = _matrix(k, first, second, p, 1 - p)
        asked = ~preferences.isnan()
        valid = asked.any(-1)
        scores = preferences.where(asked, 0.0).sum(-1) / asked.sum(-1).clamp(min=1)
        said_first = logps.softmax(-1)[..., 0].where(enough, math.nan)  # that the one shown first is better, [2, B, pairs]
        average_mass = _matrix(k, first, second, mass.mean(0), mass.mean(0)).nanmean(-1)
        return Annotation(
            scores=scores.float(),
            valid=valid,
            preferences=preferences.float(),
            seen_first=_matrix(k, first, second, said_first[0], said_first[1]).float(),
            mass=average_mass.float(),
            annotator_version=self.version,
        )

    def _pairs(self, k: int) -> list[tuple[int, int]]:
        """Who meets whom, each pair once."""
        distance = k // 2 if self.opponents is None else min((self.opponents + 1) // 2, k // 2)
        return sorted({(min(i, (i + d) % k), max(i, (i + d) % k)) for i in range(k) for d in range(1, distance + 1)})

    def _question(self, prompt: Prompt, first: str, second: str) -> str:
        return self.template.render({"prompt": text_of(prompt), "response_1": first, "response_2": second})


def _matrix(k: int, first: Tensor, second: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """``upper`` at (first, second), ``lower`` at (second, first), NaN elsewhere, ``[B, K, K]``."""
    matrix = torch.full((len(upper), k, k), math.nan, dtype=upper.dtype)
    matrix[:, first, second], matrix[:, second, first] = upper, lower
    return matrix
