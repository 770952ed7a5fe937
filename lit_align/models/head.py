"""The language-model head, where it is needed: at the slots from which a response token is predicted."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_ABOVE = 1 << 28  # logits: 1 GiB in float32, and as much again for their log-probs and gradient

Say = Callable[[Tensor, Tensor], Sequence[Tensor]]
"""What to keep of logits ``[m, V]`` and of the tokens ``[m]`` that followed: tensors ``[m, ...]``."""


@final
@dataclass
class Picked:
    """What the head was given: the last hidden states at the wanted slots, ``[M, H]``."""

    hidden: Tensor | None = None


@contextmanager
def picking(model: Any, slots: Tensor, first_only: bool = False) -> Iterator[Picked]:
    """Meanwhile the head reads these ``slots`` ``[M]`` of all rows and no others, so that the model's logits are ``[1, M, V]``: its own
    forward does to them whatever it does to logits.

    Args:
        model: a Hugging Face causal language model.
        slots: of its rows, counted row by row.
        first_only: give the head the first of them only; the others are for `in_chunks`.
    """
    picked = Picked()

    def pick(module: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        picked.hidden = inputs[0].flatten(0, 1)[slots]
        return picked.hidden[: 1 if first_only else None].unsqueeze(0), *inputs[1:]

    handle = model.get_output_embeddings().register_forward_pre_hook(pick)
    try:
        yield picked
    finally:
        handle.remove()


def in_chunks(model: Any, hidden: Tensor, tokens: Tensor, say: Say, chunk: int) -> Sequence[Tensor]:
    """What is said of ``chunk`` tokens at a time, computed again for the gradient: all logits are never in memory together.

    Args:
        model: whose head reads, and whose config says what is done to logits after it.
        hidden: what the head reads, ``[M, H]``.
        tokens: that followed, ``[M]``.
        say: what to keep.
        chunk: how many tokens at a time.
    """

    def read(part: Tensor, following: Tensor) -> tuple[Tensor, ...]:
        return tuple(say(after_head(model.config.get_text_config(), model.get_output_embeddings()(part)), following))

    pairs = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    found: Any = [checkpoint(read, part, following, use_reentrant=False) for part, following in pairs]
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def after_head(config: Any, logits: Tensor) -> Tensor:
    """What families do to the head's output, by the names that configs have for it."""
    for name in ("logit_scale", "lm_head_multiplier"):
        if (factor := getattr(config, name, None)) is not None:
            logits = logits * factor
    if (divisor := getattr(config, "logits_scaling", None)) is not None:
        logits = logits / divisor
    for name in ("final_logit_softcapping", "logits_soft_cap"):
        if (cap := getattr(config, name, None)) is not None:
            logits = (logits / cap).tanh() * cap
    return logits
