"""Surrogates and normalisers of policy gradients, as a YAML chooses them."""

from dataclasses import dataclass
from typing import final

from torch import Tensor

from lit_align.functional.policy_gradient import (
    cispo_surrogate,
    clipped_surrogate,
    mean_per_response,
    overlong_penalty,
    sequence_clipped_surrogate,
    sum_over,
)
from lit_align.types import UserError

__all__ = ["CISPO", "Clip", "OverlongPenalty", "SequenceClip", "SumOver", "mean_per_response", "token_mean"]


@final
@dataclass(frozen=True)
class Clip:
    """The clipped ratio of each token: PPO's, GRPO's and, with ``high`` above ``low``, DAPO's.

    Args:
        low, high: how far below and above 1 a ratio still has a gradient.
    """

    low: float = 0.2
    high: float = 0.2

    def __call__(self, log_ratios: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `clipped_surrogate`."""
        return clipped_surrogate(log_ratios, advantages, mask, low=self.low, high=self.high)


@final
@dataclass(frozen=True)
class SequenceClip:
    """The clipped mean ratio of a response's tokens: GSPO's.

    Args:
        low, high: how far below and above 1 it still has a gradient.
    """

    low: float = 3e-4
    high: float = 4e-4

    def __call__(self, log_ratios: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `sequence_clipped_surrogate`."""
        return sequence_clipped_surrogate(log_ratios, advantages, mask, low=self.low, high=self.high)


@final
@dataclass(frozen=True)
class CISPO:
    """The clipped ratio as a constant weight of the log-prob: no token loses its gradient.

    Args:
        low, high: how far below and above 1 the weight may go; ``low = 1`` is no lower bound.
    """

    low: float = 1.0
    high: float = 4.0

    def __call__(self, log_ratios: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """See `cispo_surrogate`."""
        return cispo_surrogate(log_ratios, advantages, mask, low=self.low, high=self.high)


def token_mean(losses: Tensor, mask: Tensor) -> Tensor:
    """The mean over all tokens of the optimizer step: a long response counts for more; ``[B, K, T]`` as it is."""
    return losses


@final
@dataclass(frozen=True)
class SumOver:
    """The sum over a response's tokens divided by a constant, so that no length is favoured: Dr. GRPO's.

    Args:
        tokens: the constant, such as the sampler's ``max_new_tokens``.
    """

    tokens: float = 1.0

    def __call__(self, losses: Tensor, mask: Tensor) -> Tensor:
        """See `sum_over`."""
        return sum_over(losses, mask, tokens=self.tokens)


@final
@dataclass(frozen=True)
class OverlongPenalty:
    """Takes up to ``weight`` off the score of a response that comes near the longest one.

    Args:
        longest: tokens at which all of it is taken off: the sampler's ``max_new_tokens``.
        cache: tokens before that over which it grows.
        weight: in units of reward.

    Raises:
        UserError: if ``cache`` is not between 1 and ``longest``.
    """

    longest: int
    cache: int
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.cache <= self.longest:
            raise UserError(f"OverlongPenalty needs 1 <= cache <= longest, got cache = {self.cache} and longest = {self.longest}.")

    def __call__(self, lengths: Tensor) -> Tensor:
        """What is added to the scores, ``[B, K]`` from lengths in tokens ``[B, K]``."""
        return self.weight * overlong_penalty(lengths, longest=self.longest, cache=self.cache)
