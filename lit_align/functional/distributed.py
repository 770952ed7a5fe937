"""Sums, means and spreads over the ranks of a run; without a process group, over this process.

Collectives: every rank must call them, in the same order, with tensors of the same shape on the device of the process group
(``global_mean`` and ``global_std`` take any shape: what travels is a few numbers). All ranks get the same bits.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from lit_align.functional.logprobs import full_precision

T = TypeVar("T")


def global_sum(value: Tensor) -> Tensor:
    """The sum of ``value`` over all ranks.

    Args:
        value: float, integer or bool (which is counted), of any shape; not changed.

    Returns:
        A new tensor without gradient, of the same shape and dtype (int64 for bool).

    >>> global_sum(torch.tensor([True, False]))
    tensor([1, 0])
    """
    total = value.detach().long() if value.dtype == torch.bool else value.detach().clone()
    if world_size() > 1:
        total = total.contiguous()
        dist.all_reduce(total)
    return total


def global_mean(values: Tensor, valid: Tensor) -> Tensor:
    """The mean over the valid entries of all ranks, each counting once wherever it is; 0 if there is none.

    Args:
        values: anything where not valid, any shape.
        valid: bool, of the same shape.

    Returns:
        float32 (float64 for float64 values) without gradient, ``[]``.

    >>> global_mean(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return _moments(values, valid)[0].to(full_precision(values).dtype)


def global_std(values: Tensor, valid: Tensor) -> Tensor:
    """The population standard deviation over the valid entries of all ranks, in one reduction; 0 if there is none.

    Args:
        values: anything where not valid, any shape.
        valid: bool, of the same shape.

    Returns:
        float32 (float64 for float64 values) without gradient, exactly 0 for equal float32 values, ``[]``.

    >>> global_std(torch.tensor([1.0, 3.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(1.)
    """
    return _moments(values, valid)[1].sqrt().to(full_precision(values).dtype)


def gathered(mine: T) -> list[T]:
    """What every rank has, in the order of the ranks, on all of them; anything that can be pickled.

    >>> gathered("mine")
    ['mine']
    """
    if world_size() == 1:
        return [mine]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def take_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite these, on every rank, by those of the first."""
    if world_size() > 1:
        for tensor in tensors:
            dist.broadcast(tensor, 0)


def world_size() -> int:
    """How many ranks there are; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _moments(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance. Each rank's count, mean and sum of squared deviations travel, not its sum of squares, whose
    difference with the squared mean would lose a small spread around a large mean."""
    if valid.shape != values.shape:
        raise ValueError(f"valid must have the shape of values, {tuple(values.shape)}, got {tuple(valid.shape)}.")
    wide = values.detach().to(torch.float32 if values.device.type == "mps" else torch.float64)  # MPS has no float64
    count = valid.sum().to(wide.dtype)
    mean = wide.where(valid, 0.0).sum() / count.clamp(min=1)
    spread = (wide - mean).where(valid, 0.0).square().sum()
    ranks = wide.new_zeros(world_size(), 3)
    ranks[dist.get_rank() if len(ranks) > 1 else 0] = torch.stack([count, mean, spread])
    counts, means, spreads = global_sum(ranks).unbind(-1)  # [ranks] each: others' rows are 0 here, so the sum is a gather
    total = counts.sum().clamp(min=1)
    pooled = (counts * means).sum() / total
    return pooled, (spreads + counts * (means - pooled).square()).sum() / total
