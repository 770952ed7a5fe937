"""What a reward model's scores cost, given who should have won."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lit_align.functional.reward_model import bradley_terry_loss, plackett_luce_loss
from lit_align.types import AlignmentBatch


@dataclass(frozen=True)
class RewardLoss(ABC):
    """From the scores of K responses to a loss for every pair that ``batch.pairs`` names."""

    reads_labels = True  # P(i beats j), or only that i should

    @abstractmethod
    def losses(self, values: Tensor, batch: AlignmentBatch) -> Tensor:
        """From values ``[B, K]`` to ``[B, K, K]``, finite everywhere and not meaningful where there is no pair."""


@final
@dataclass(frozen=True)
class BradleyTerry(RewardLoss):
    """Every pair by itself: see `bradley_terry_loss`.

    Args:
        margin: how far ahead the winner should be, per unit by which it was scored higher: a constant for pairs of scores 1 and 0.
    """

    margin: float = 0.0

    def losses(self, values: Tensor, batch: AlignmentBatch) -> Tensor:
        """See `RewardLoss.losses`."""
        assert batch.pairs is not None
        scores = batch.scores.where(batch.valid, 0.0)
        target = self.margin * (scores.unsqueeze(-1) - scores.unsqueeze(-2))  # [B, K, K]
        labels = batch.pairs.nan_to_num(1.0)  # a NaN would reach the gradient of its neighbours
        return bradley_terry_loss(values.unsqueeze(-1) - values.unsqueeze(-2), labels, target_margin=target)


@final
@dataclass(frozen=True)
class PlackettLuce(RewardLoss):
    """The ranking of all K as a whole: see `plackett_luce_loss`. The term of a response is spread over the pairs that it wins, so
    that a prompt counts, as in all losses of pairs, by the number of its pairs."""

    reads_labels = False

    def losses(self, values: Tensor, batch: AlignmentBatch) -> Tensor:
        """See `RewardLoss.losses`."""
        assert batch.pairs is not None
        beats = ~batch.pairs.isnan()
        terms = plackett_luce_loss(values, beats) / beats.sum(-1).clamp(min=1)  # [B, K]
        return terms.unsqueeze(-1).expand_as(batch.pairs)
