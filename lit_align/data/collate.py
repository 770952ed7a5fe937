"""Chunks of records to one record."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from lit_align.types import TensorRecord, UserError

Record = TypeVar("Record", bound=TensorRecord)


def join(chunks: Sequence[Record]) -> Record:
    """One record of all rows, in order: prompts are padded on the left, responses on the right, tuples strung together; a tensor
    that only some chunks have is NaN in the others.

    Raises:
        UserError: if the chunks differ in a field that is neither, such as the version of the annotator.
    """
    letters = {name: axes for chunk in chunks for name, _, axes in chunk.tensors()}
    joined: dict[str, Any] = {}

    def stacked(name: str, values: Sequence[Tensor | None]) -> Tensor:
        return _stack([_unknown(c, letters[name]) if v is None else v for c, v in zip(chunks, values, strict=True)], letters[name])

    for field in fields(chunks[0]):  # pyright: ignore[reportArgumentType]
        values = [getattr(chunk, field.name) for chunk in chunks]
        if field.name in letters:
            joined[field.name] = stacked(field.name, values)
        elif isinstance(values[0], Mapping):
            names = dict.fromkeys(name for value in values for name in value)
            joined[field.name] = {name: stacked(f"{field.name}.{name}", [value.get(name) for value in values]) for name in names}
        elif isinstance(values[0], tuple):
            joined[field.name] = tuple(item for value in values for item in value)
        else:
            if any(value != values[0] for value in values):
                raise UserError(
                    f"The chunks of one rollout should have one {field.name}, but they have {values}. An annotator learns in its `learn`, "
                    "between rollouts: labels of two versions can't be compared."
                )
            joined[field.name] = values[0]
    return type(chunks[0])(**joined)


def _unknown(chunk: TensorRecord, letters: str) -> Tensor:
    sizes = {letter: size for _, tensor, axes in chunk.tensors() for letter, size in zip(axes, tensor.shape, strict=True)}
    return torch.full([sizes[letter] for letter in letters], torch.nan, dtype=torch.float32)


def _stack(parts: Sequence[Tensor], letters: str) -> Tensor:
    if letters[-1] in "PT":
        width = max(part.shape[-1] for part in parts)
        left = letters[-1] == "P"
        parts = [pad(part, (width - part.shape[-1], 0) if left else (0, width - part.shape[-1])) for part in parts]
    return torch.cat(list(parts))
