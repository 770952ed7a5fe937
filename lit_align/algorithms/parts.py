"""Parts of algorithms that a YAML names: a function by its import path, or a class with a ``__call__`` and its arguments."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from lit_align.types import UserError


def require_price(name: str, value: float, *, zero: bool = False) -> None:
    """Refuse a number that would turn an objective round, or divide by zero.

    Raises:
        UserError: if it is negative, not a number, or 0 where ``zero`` does not allow it.
    """
    if not (value > 0 or (zero and value == 0)):
        raise UserError(f"{name} should be a number {'of at least' if zero else 'above'} 0, got {value}. Correct model.init_args.{name}.")


Made = Any
"""A tensor. Of a ``Callable`` that says so, jsonargparse would take subclasses of ``Tensor``, and no object with a ``__call__``."""

Baseline = Callable[[Tensor, Tensor], Made]
"""From scores and valid ``[B, K]`` to advantages ``[B, K]``, 0 where not valid."""

Selection = Callable[[Tensor, Tensor], Made]
"""From scores and valid ``[B, K]`` to which responses are imitated, bool ``[B, K]``."""

Link = Callable[[Tensor], Made]
"""From the log-ratio of a response to its value, ``f'(u)`` up to a constant, ``[B, K]`` both."""

Surrogate = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""From log-ratios, advantages and mask ``[B, K, T]`` to token losses and which ratios were clipped, ``[B, K, T]`` both."""

Normaliser = Callable[[Tensor, Tensor], Made]
"""From token losses and mask ``[B, K, T]`` to losses of responses ``[B, K]``, or of tokens ``[B, K, T]``, whose mean is minimised."""
