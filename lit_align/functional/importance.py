"""Weights for samples that another distribution drew."""

import math

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision


def truncated_ratio(logps: Tensor, drawn_logps: Tensor, *, ceiling: float = math.inf) -> Tensor:
    r"""How much a sample of ``q`` counts in an expectation under ``pi``, at most ``ceiling``.

    .. math:: f = \min\big( e^{\log\pi - \log q},\ c \big)

    At ``c = inf`` this is exact: :math:`E_{y \sim q}[f\, g(y)] = E_{y \sim \pi}[g(y)]` for every ``g``, as long as ``q`` can draw all
    that ``pi`` can. A finite ``c`` bounds the variance and makes too little of what ``q`` draws too rarely. ``c = 1`` lifts no sample.
    Source: truncated importance sampling, Ionides 2008, https://doi.org/10.1198/106186008X320456, equation 3 with a fixed ``c``.

    Args:
        logps: ``log pi`` in nats, ``[...]``.
        drawn_logps: ``log q`` in nats, of the same shape.
        ceiling: positive; applied to the log-ratio, so that one of any size is safe in float32.

    Returns:
        Without gradient, float32 (float64 if an input is), ``[...]``.

    Raises:
        ValueError: if ``ceiling`` is not positive.

    >>> truncated_ratio(torch.tensor([-1.0, -1.0]), torch.tensor([-1.0, -9.0]), ceiling=2.0)
    tensor([1., 2.])
    """
    if not ceiling > 0:
        raise ValueError(f"ceiling must be positive, got {ceiling}.")
    log_ratio = full_precision(logps.detach()) - full_precision(drawn_logps.detach())
    return torch.exp(log_ratio.clamp(max=math.log(ceiling)))
