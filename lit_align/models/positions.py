"""Positions of tokens in padded rows, and how many a model has."""

from typing import Any

from torch import Tensor


def positions_of(mask: Tensor) -> Tensor:
    """The place of every token among those in the mask, from 0 on, ``[N, S]`` to the same; 0 for padding on the left."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)


def context_of(config: Any) -> int | None:
    """How many tokens a model of this text config can read, where it says so."""
    return getattr(config, "max_position_embeddings", None)
