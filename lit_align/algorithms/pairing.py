"""Which responses to a prompt are compared, and how sure the label is."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision
from lit_align.functional.pairs import all_pairs, best_versus_worst, same_tokens, was_compared, win_probabilities
from lit_align.types import AlignmentBatch


@dataclass(frozen=True)
class Pairing(ABC):
    r"""From K labelled responses to pairs.

    Args:
        soft: label a pair with the annotator's P(first wins): the judge's where it compared the two, else :math:`\sigma` of the
            difference of scores, as of a reward model. False: with 1.
    """

    soft: bool = False

    @abstractmethod
    def choose(self, batch: AlignmentBatch) -> Tensor:
        """Which response should beat which, bool ``[B, K, K]``; each pair once."""

    @final
    def pairs(self, batch: AlignmentBatch) -> Tensor:
        """P(i should beat j) of each pair, NaN where there is none, ``[B, K, K]``. Two responses of the same tokens are no pair,
        whatever the annotator thought."""
        chosen = self.choose(batch) & ~same_tokens(batch.response_tokens, batch.response_mask)
        if not self.soft:
            sure = torch.ones_like(chosen, dtype=full_precision(batch.scores).dtype)
        else:
            sure = win_probabilities(batch.scores, batch.preferences)
        return sure.where(chosen, math.nan)


@final
@dataclass(frozen=True)
class BestVersusWorst(Pairing):
    """The response with the highest score against the one with the lowest: at most one pair per prompt, two forwards for any K.

    Args:
        soft: see `Pairing`; two that a judge did not compare, or could not tell apart, are no pair then.
    """

    def choose(self, batch: AlignmentBatch) -> Tensor:
        """See `Pairing.choose`."""
        chosen = best_versus_worst(batch.scores, batch.valid)
        if batch.preferences is None:
            return chosen
        told = batch.preferences.isfinite() & (batch.preferences != 0.5)
        return chosen & (told | ~was_compared(batch.preferences) | (not self.soft))


@final
@dataclass(frozen=True)
class AllPairs(Pairing):
    """Every two responses of which one was preferred: by a judge of pairs, where it compared them; of prompts without one, by their
    scores.

    Args:
        soft: see `Pairing`.
    """

    def choose(self, batch: AlignmentBatch) -> Tensor:
        """See `Pairing.choose`."""
        return all_pairs(batch.scores, batch.preferences, batch.valid)
