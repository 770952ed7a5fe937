"""Positions of tokens in padded rows."""

from torch import Tensor


def positions_of(mask: Tensor) -> Tensor:
    """The place of every token among those in the mask, from 0 on, ``[N, S]`` to the same; 0 for padding on the left."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
