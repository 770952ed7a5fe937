"""Responses that meet two at a time, in both orders."""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor

from lit_align.annotators.asking import Asker, Verdict, average, is_hard
from lit_align.functional.verdicts import settled, swap_averaged
from lit_align.types import Annotation, JudgeBackend, Rollouts, UserError

OPTIONS = ("1", "2")

Questions = Callable[[int, tuple[int, int], str, str], Sequence[str]]
"""From a row, the numbers of two of its responses and what is shown first and second to the questions about them, as many for each
pair; the numbers come in the same order whichever is shown first."""


@final
class Comparison:
    """Asks about pairs and makes preferences and scores of the answers; what is asked is the caller's.

    Args:
        owner: name of the judge, for messages.
        backend: who is asked.
        tie_margin, opponents, min_mass, verdict: see `PairwiseJudge`.

    Raises:
        UserError: if a number is out of range.
    """

    def __init__(
        self, owner: str, backend: JudgeBackend, tie_margin: float, opponents: int | None, min_mass: float, verdict: Verdict
    ) -> None:
        if not 0 <= tie_margin < 0.5:
            raise UserError(f"{owner}: tie_margin should be at least 0 and less than 0.5, got {tie_margin}.")
        if opponents is not None and opponents < 1:
            raise UserError(f"{owner}: opponents should be at least 1, or null for all, got {opponents}.")
        self.owner, self.tie_margin, self.opponents, self.hard = owner, tie_margin, opponents, is_hard(owner, verdict)
        self.asker = Asker(owner, backend, OPTIONS, min_mass)
        self.identity = f"tie_margin={tie_margin}, opponents={opponents}, min_mass={min_mass}, verdict={verdict}"

    def annotate(self, rollouts: Rollouts, questions: Questions, version: int) -> Annotation:
        """Preferences, averaged and as said in each order, ``[B, K, K]``, scores and mass ``[B, K]`` on the CPU.

        Raises:
            UserError: if there is only one response to a prompt.
        """
        b, k = rollouts.response_tokens.shape[:2]
        if k < 2:
            raise UserError(f"{self.owner} compares responses to the same prompt and needs at least 2, got responses_per_prompt = {k}.")
        pairs = self._pairs(k)
        matches = [(row, pair) for row in range(b) for pair in pairs]
        said = [(rollouts.texts[row][i], rollouts.texts[row][j]) for row, (i, j) in matches]
        orders = [
            [question for match, (x, y) in zip(matches, said, strict=True) for question in questions(*match, x, y)],
            [question for match, (x, y) in zip(matches, said, strict=True) for question in questions(*match, y, x)],
        ]
        shape = 2, b, len(pairs), len(orders[0]) // max(len(matches), 1)  # orders, prompts, pairs, votes
        logps, mass, enough = (answer.reshape(*shape, *answer.shape[1:]) for answer in self.asker.ask([*orders[0], *orders[1]]))
        p = average(swap_averaged(logps[0], logps[1]), enough.all(0))  # [B, pairs]
        p = settled(p, tie_margin=self.tie_margin, hard=self.hard)
        said_first = average(logps.softmax(-1)[..., 0], enough)  # that the one shown first is better, [2, B, pairs]
        first, second = torch.tensor(pairs).T  # [pairs]
        preferences = _matrix(k, first, second, p, 1 - p)
        asked = ~preferences.isnan()
        scores = preferences.where(asked, 0.0).sum(-1) / asked.sum(-1).clamp(min=1)
        pair_mass = mass.mean((0, -1))
        average_mass = _matrix(k, first, second, pair_mass, pair_mass).nanmean(-1)
        return Annotation(
            scores=scores.float(),
            valid=asked.any(-1),
            preferences=preferences.float(),
            seen_first=_matrix(k, first, second, said_first[0], said_first[1]).float(),
            mass=average_mass.float(),
            annotator_version=version,
        )

    def _pairs(self, k: int) -> list[tuple[int, int]]:
        """Who meets whom, each pair once."""
        distance = k // 2 if self.opponents is None else min((self.opponents + 1) // 2, k // 2)
        return sorted({(min(i, (i + d) % k), max(i, (i + d) % k)) for i in range(k) for d in range(1, distance + 1)})


def _matrix(k: int, first: Tensor, second: Tensor, upper: Tensor, lower: Tensor) -> Tensor:
    """``upper`` at (first, second), ``lower`` at (second, first), NaN elsewhere, ``[B, K, K]``."""
    matrix = torch.full((len(upper), k, k), math.nan, dtype=upper.dtype)
    matrix[:, first, second], matrix[:, second, first] = upper, lower
    return matrix
