"""Parts of algorithms that a YAML names: a function by its import path, or a class with a ``__call__`` and its arguments."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

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
