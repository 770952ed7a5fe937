"""Which of the faster ways of reading is for a model, where it is and as it is now."""

from typing import Any

import torch

from lit_align.models import fused, static
from lit_align.models.decoding import PaddedRows, RowCache
from lit_align.models.fused import FusedRows
from lit_align.models.static import StaticRows


def faster_way(model: Any) -> type[RowCache] | None:
    """One that may stand in for `PaddedRows` if a probe finds it to say the same; None where there is none."""
    if fused.fits(model):
        return FusedRows
    return StaticRows if static.fits(model) else None


def way_to_try(model: Any) -> type[RowCache] | None:
    """`faster_way` where a probe can judge it: `FusedRows` in float32, as rounding would hide a misread text."""
    way, exact = faster_way(model), next(model.parameters()).dtype == torch.float32
    return way if exact or way is StaticRows else None


def standing_way(chosen: type[RowCache], model: Any) -> type[RowCache]:
    """``chosen``, or `PaddedRows` where a faster way was chosen that is not for the model any more: moved, sharded, in mixed precision."""
    return PaddedRows if chosen in (FusedRows, StaticRows) and chosen is not faster_way(model) else chosen
