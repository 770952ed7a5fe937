"""What a score is compared with. The two that compare siblings are pure functions; this one looks at the whole batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lit_align.functional.advantages import group_centred, leave_one_out
from lit_align.functional.distributed import global_mean
from lit_align.types import TensorResult

Baseline = Callable[[Tensor, Tensor], TensorResult]
"""From scores and valid ``[B, K]`` to advantages ``[B, K]``, 0 where not valid."""

__all__ = ["Baseline", "BatchMean", "group_centred", "leave_one_out"]


@final
@dataclass(frozen=True)
class BatchMean:
    """A score minus the mean of the whole rollout, on all ranks: the baseline that works at K = 1.

    It does not cancel what makes a prompt easy, so easy prompts get larger weights: by ``exp((V(x) - mean V)/(alpha + beta))``.
    """

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Advantages ``[B, K]``."""
        return (scores - global_mean(scores, valid)).where(valid, 0.0)
