"""What a unit of advantage is worth: the object that decides where DAR ends (docs/algorithms/dar.md).

A scale is immutable. What it remembers, one number, is kept by the algorithm in its checkpoint and handed to ``measure``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from lit_align.functional.advantages import within_group_variance
from lit_align.functional.distributed import global_mean, global_sum
from lit_align.types import AlignmentBatch, UserError


class AdvantageScale(ABC):
    """Measures, once per rollout, what advantages are divided by, in units of reward.

    ``smallest_group`` is the least K that it works with. One that ``measures_once`` can't start anew.
    """

    smallest_group: ClassVar[int] = 1
    measures_once: ClassVar[bool] = False

    @abstractmethod
    def measure(self, previous: Tensor, scores: Tensor, advantages: Tensor, valid: Tensor, steps: Tensor, drift: Tensor) -> Tensor:
        """A positive number for every prompt ``[B]``, the same on all ranks for the prompts of one optimizer step.

        Args:
            previous: what the last rollout measured, 0 before the first that this version of the annotator scored, ``[]``.
            scores: ``[B, K]``.
            advantages: the scores minus their baseline, ``[B, K]``.
            valid: which of them count, bool ``[B, K]``.
            steps: the optimizer step of each prompt, ``[B]``.
            drift: mean over all ranks of ``|log pi_t - log pi_ref|`` of a response, in nats, ``[]``.
        """


@final
@dataclass(frozen=True)
class BatchStd(AdvantageScale):
    """Population standard deviation of the advantages of the optimizer step, on all ranks: the published scale.

    Keeps full contrast while the signal dies, so the price of a nat of divergence falls with it.

    Args:
        eps: smallest scale, so that equal scores divide by something.
    """

    eps: float = 1e-6

    def measure(self, previous: Tensor, scores: Tensor, advantages: Tensor, valid: Tensor, steps: Tensor, drift: Tensor) -> Tensor:
        """See `AdvantageScale.measure`."""
        a = advantages.where(valid, 0.0)
        rows = torch.stack([valid.sum(-1).to(a.dtype), a.sum(-1), a.square().sum(-1)], -1)  # [B, 3]
        totals = rows.new_zeros(int(steps.max()) + 1, 3).index_add_(0, steps, rows)
        count, first, second = global_sum(totals).unbind(-1)  # [steps]
        mean = first / count.clamp(min=1)
        std = (second / count.clamp(min=1) - mean.square()).clamp(min=0).sqrt()
        return std.clamp(min=self.eps)[steps]


@final
@dataclass(frozen=True)
class ReferenceStd(AdvantageScale):
    """Standard deviation of the scores inside a prompt in the first rollout, when the policy still is the reference.

    With it the price of a nat, alpha times this, is a constant of the run.

    Args:
        eps: smallest scale that is believed.

    Raises:
        UserError: if the first rollout is not the reference's, or has no spread to measure.
    """

    smallest_group: ClassVar[int] = 2
    measures_once: ClassVar[bool] = True

    eps: float = 1e-6

    def measure(self, previous: Tensor, scores: Tensor, advantages: Tensor, valid: Tensor, steps: Tensor, drift: Tensor) -> Tensor:
        """See `AdvantageScale.measure`."""
        if previous == 0:
            if drift > 1e-2:
                raise UserError(
                    f"ReferenceStd measures its unit while the policy is the reference, but their log-probs differ by {float(drift):.3g} "
                    "nats in the first rollout. Start from the reference, or use RunningMax() or FixedScale(value)."
                )
            previous = _within_group_std(scores, valid)
            if not previous > self.eps:  # kept for the whole run, it would promote noise to signal
                raise UserError(
                    f"ReferenceStd measures the spread of scores inside a prompt, and it is {float(previous):.3g} in the first rollout: no "
                    "prompt's responses were told apart. Raise prompts_per_rollout, or use RunningMax() or FixedScale(value)."
                )
        return previous.expand(len(scores))


@final
@dataclass(frozen=True)
class RunningMax(AdvantageScale):
    """The largest standard deviation inside a prompt of any rollout so far: a scale that never shrinks while the annotator
    stays as it is.

    Args:
        eps: smallest scale.
    """

    smallest_group: ClassVar[int] = 2

    eps: float = 1e-6

    def measure(self, previous: Tensor, scores: Tensor, advantages: Tensor, valid: Tensor, steps: Tensor, drift: Tensor) -> Tensor:
        """See `AdvantageScale.measure`."""
        return torch.maximum(previous, _within_group_std(scores, valid).clamp(min=self.eps)).expand(len(scores))


@final
@dataclass(frozen=True)
class FixedScale(AdvantageScale):
    """A number of your choice; 1 leaves advantages in units of reward.

    Args:
        value: positive, in units of reward.

    Raises:
        UserError: if it is not positive.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        if self.value <= 0:
            raise UserError(f"FixedScale divides advantages by a positive number, got {self.value}.")

    def measure(self, previous: Tensor, scores: Tensor, advantages: Tensor, valid: Tensor, steps: Tensor, drift: Tensor) -> Tensor:
        """See `AdvantageScale.measure`."""
        return scores.new_full((len(scores),), self.value)


def measured(scale: AdvantageScale, memory: Tensor, version: Tensor, batch: AlignmentBatch, advantages: Tensor, valid: Tensor) -> Tensor:
    """What ``scale`` finds in a rollout, for every prompt ``[B]``. The algorithm's buffers are brought up to date.

    Args:
        scale: of the algorithm.
        memory: what the last rollout measured, ``[]``.
        version: of the annotator whose scores those were, ``[]``; of another one's nothing is remembered.
        batch: with sampling and reference log-probs.
        advantages: the scores minus their baseline, ``[B, K]``.
        valid: which of them count, bool ``[B, K]``.

    Raises:
        UserError: if the annotator has learnt and the scale measures once.
    """
    if int(version) != batch.annotator_version:
        if scale.measures_once and memory != 0:
            raise UserError(
                f"{type(scale).__name__} measured its unit once, in scores of version {int(version)} of the annotator, which has learnt: "
                f"in version {batch.annotator_version} its scores have another unit. Use RunningMax(), which starts anew, BatchStd() or "
                "FixedScale(value)."
            )
        memory.zero_()
        version.fill_(batch.annotator_version)
    drift = global_mean((batch.sampling_response_logps - batch.reference_response_logps).abs(), valid)
    found = scale.measure(memory, batch.scores, advantages, valid, batch.optimizer_steps, drift)
    memory.copy_(found[-1])
    return found


def _within_group_std(scores: Tensor, valid: Tensor) -> Tensor:
    """Root of the mean unbiased variance inside a prompt, on all ranks, ``[]``."""
    variance, exists = within_group_variance(scores, valid)
    total, count = global_sum(torch.stack([variance.where(exists, 0.0).sum(), exists.sum().to(variance.dtype)]))
    return (total / count.clamp(min=1)).sqrt()
