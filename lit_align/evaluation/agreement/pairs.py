"""Pairs of responses that people and a judge have labelled."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.types import TensorRecord, axes

FIRST, TIE, SECOND = 0, 1, 2
"""The choices, in the order of every confusion matrix."""

UNKNOWN = -1


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPairs(TensorRecord):
    """``N`` pairs of responses, the first and the second of each in the order of the file.

    A verdict is P(the first is better): 1 or 0 where it is a plain choice, 1/2 a tie, NaN where there is none.

    Attributes:
        prompts: number of the pair's prompt, ``[N]``; pairs of one prompt are no independent evidence.
        votes: how many people chose the first, a tie, the second, ``[N, 3]``; all 0 where nobody was asked.
        verdicts: the judge's, of both orders together where it was asked in both, ``[N]``.
        orders: its verdicts with the first response shown first, and with it shown second, ``[N, 2]``; None where it was asked in one
            order, or shows no order.
        lengths: of the two responses in characters, ``[N, 2]``; None where their texts are not known.
        soft: whether verdicts are probabilities, which may be right as often as they say.
        subsets: the subset of every pair; empty where there are none.
    """

    prompts: Tensor = axes("N")
    votes: Tensor = axes("NC")
    verdicts: Tensor = axes("N")  # float64
    orders: Tensor | None = axes("NO", default=None)  # float64
    lengths: Tensor | None = axes("NO", default=None)
    soft: bool = False
    subsets: tuple[str, ...] = ()

    @property
    def human(self) -> Tensor:
        """What most people chose, a tie where two choices share the lead, ``[N]``; UNKNOWN where nobody was asked."""
        most = self.votes.max(-1).values
        leads = self.votes == most.unsqueeze(-1)
        alone = leads.int().argmax(-1).where(leads.sum(-1) == 1, TIE)
        return alone.where(most > 0, UNKNOWN)

    @property
    def ai(self) -> Tensor:
        """What the judge chose, ``[N]``; UNKNOWN where it said nothing."""
        return choices(self.verdicts)

    def rows(self, index: Sequence[int]) -> "LabelledPairs":
        """These pairs only, in this order."""
        picked = torch.tensor(list(index), dtype=torch.long)
        return LabelledPairs(
            **{name: tensor[picked] for name, tensor, _ in self.tensors()},
            soft=self.soft,
            subsets=tuple(self.subsets[i] for i in index) if self.subsets else (),
        )


def choices(verdicts: Tensor) -> Tensor:
    """The choice that a P(the first is better) amounts to, of the same shape; UNKNOWN where it is NaN.

    >>> choices(torch.tensor([0.9, 0.5, 0.0])).tolist() == [FIRST, TIE, SECOND]
    True
    """
    chosen = torch.full_like(verdicts, UNKNOWN, dtype=torch.long)
    return chosen.masked_fill(verdicts > 0.5, FIRST).masked_fill(verdicts == 0.5, TIE).masked_fill(verdicts < 0.5, SECOND)
