"""How undecided a policy is about its next token."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.functional.logprobs import full_precision

CHUNK = 1 << 24  # numbers of float32 at a time: 64 MiB


def token_entropy(logits: Tensor, temperature: float = 1.0) -> Tensor:
    r""":math:`- \sum_v \pi(v) \log \pi(v)` with its gradient, some rows at a time.

    Beside the logits nothing of their size is kept for the backward pass, which computes each chunk again. A token with logit ``-inf``
    adds 0.

    Args:
        logits: any float dtype, ``[..., V]``.
        temperature: divides the logits.

    Returns:
        Nats, from 0 to ``log V``, float32 (float64 for float64 logits), ``[...]``.

    >>> token_entropy(torch.zeros(1, 4)).exp()
    tensor([4.])
    """
    rows = logits.flatten(0, -2).split(max(CHUNK // logits.shape[-1], 1))
    found = [checkpoint(_entropy, part, temperature, use_reentrant=False) for part in rows]
    return torch.cat(found).view(logits.shape[:-1])  # pyright: ignore[reportCallIssue, reportArgumentType]  (checkpoint's type is Any)


def _entropy(logits: Tensor, temperature: float) -> Tensor:
    logps = (full_precision(logits) / temperature).log_softmax(-1)
    return -(logps.exp() * logps.where(logps > -torch.inf, 0.0)).sum(-1)
