"""Chunks of records to one record."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_align.types import TensorRecord

Record = TypeVar("Record", bound=TensorRecord)


def join(chunks: Sequence[Record]) -> Record:
    """One record of all rows, in order: prompts are padded on the left, responses on the right, tuples strung together.

    Fields that are neither tensors, by name or alone, nor tuples are the first chunk's.
    """
    letters = {name: axes for name, _, axes in chunks[0].tensors()}
    joined: dict[str, Any] = {}
    for field in fields(chunks[0]):  # pyright: ignore[reportArgumentType]
        values = [getattr(chunk, field.name) for chunk in chunks]
        if field.name in letters:
            joined[field.name] = _stack(values, letters[field.name])
        elif isinstance(values[0], Mapping):
            joined[field.name] = {name: _stack([value[name] for value in values], letters[f"{field.name}.{name}"]) for name in values[0]}
        elif isinstance(values[0], tuple):
            joined[field.name] = tuple(item for value in values for item in value)
        else:
            joined[field.name] = values[0]
    return type(chunks[0])(**joined)


def _stack(parts: Sequence[Tensor], letters: str) -> Tensor:
    if letters[-1] in "PT":
        width = max(part.shape[-1] for part in parts)
        left = letters[-1] == "P"
        parts = [pad(part, (width - part.shape[-1], 0) if left else (0, width - part.shape[-1])) for part in parts]
    return torch.cat(list(parts))
