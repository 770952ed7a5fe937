"""What a score is compared with. The two that compare siblings are pure functions; this one looks at the whole batch."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.algorithms.parts import Baseline
from lit_align.functional.advantages import group_centred, leave_one_out
from lit_align.functional.distributed import global_mean

__all__ = ["BatchMean", "group_centred", "leave_one_out", "smallest_group"]


@final
@dataclass(frozen=True)
class BatchMean:
    """A score minus the mean of the whole rollout, on all ranks: the baseline that works at K = 1.

    It does not cancel what makes a prompt easy, so easy prompts get larger weights: by ``exp((V(x) - mean V)/(alpha + beta))``.
    """

    def __call__(self, scores: Tensor, valid: Tensor) -> Tensor:
        """Advantages ``[B, K]``."""
        return (scores - global_mean(scores, valid)).where(valid, 0.0)


def smallest_group(baseline: Baseline) -> int:
    """The least K that it works with. A baseline that compares siblings refuses a lone response; ask it."""
    try:
        baseline(torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    except ValueError:
        return 2
    return 1
