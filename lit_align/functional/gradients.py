"""The size of a gradient that may be copied or cut over the ranks of a run."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_align.functional.distributed import world_size


def squared_norm_share(gradients: Iterable[Tensor]) -> Tensor:
    """This rank's share of ``||g||^2``: the sum over all ranks is the squared norm of the whole gradient, whichever way it is held.

    A plain tensor is the same on every rank, as DDP leaves it, so each has a world-size-th of it. Of a ``DTensor`` a rank has its
    local part, divided by the number of ranks that hold the same one. No collective is made here.

    Args:
        gradients: of any shape and float dtype; not changed.

    Returns:
        float32, ``[]``; 0 for no gradient, not finite where an entry is not, or where a norm exceeds 1e19.

    >>> squared_norm_share([torch.tensor([3.0]), torch.tensor([[0.0, 4.0]])])
    tensor(25.)
    """
    share = torch.zeros(())
    for gradient in gradients:
        local, copies = (gradient.to_local(), _copies(gradient)) if isinstance(gradient, DTensor) else (gradient, world_size())
        share = share.to(local.device) + torch.linalg.vector_norm(local.detach(), dtype=torch.float32).square() / copies
    return share


def _copies(gradient: DTensor) -> int:
    """On how many ranks a local part is found."""
    mesh = gradient.device_mesh
    shards = 1
    for size, placement in zip(mesh.shape, gradient.placements, strict=True):
        shards *= size if placement.is_shard() else 1
    return world_size() // shards
