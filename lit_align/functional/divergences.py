r"""How far a policy is from its reference: :math:`KL(\pi \| \pi_{ref})`, estimated from samples of ``pi`` or exactly from logits.

With :math:`\rho = \log\pi - \log\pi_{ref}` of samples :math:`y \sim \pi`:

======  =========================  ===================  ====================================================
name    per sample                 as an estimate       as a loss, on policy: expected gradient
======  =========================  ===================  ====================================================
``k1``  :math:`\rho`               unbiased, any sign   0
``k2``  :math:`\rho^2 / 2`         biased, >= 0         of :math:`KL(\pi \| \pi_{ref})`
``k3``  :math:`e^{-\rho}-1+\rho`   unbiased, >= 0       of :math:`KL(\pi_{ref} \| \pi)`, the other direction
======  =========================  ===================  ====================================================

So what is right to report is not what is right to differentiate. Log-probs are of tokens or of responses, in nats, ``[...]``,
of any float dtype; everything is computed in float32 (float64 if an input is). Source: http://joschu.net/blog/kl-approx.html.
"""

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision


def kl_k1(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """``log pi - log pi_ref``: unbiased, of either sign; ``[...]`` to ``[...]`` nats.

    >>> kl_k1(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return full_precision(logps) - full_precision(reference_logps)


def kl_k2(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """``(log pi - log pi_ref)^2 / 2``: biased for large distances, never negative; ``[...]`` to ``[...]``.

    >>> kl_k2(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([2.])
    """
    return kl_k1(logps, reference_logps).square() / 2


def kl_k3(logps: Tensor, reference_logps: Tensor) -> Tensor:
    """``pi_ref/pi - 1 - log(pi_ref/pi)``: unbiased, never negative, of unbounded variance; ``[...]`` to ``[...]`` nats.

    >>> kl_k3(torch.tensor([-1.0]), torch.tensor([-3.0]))
    tensor([1.1353])
    """
    log_ratio = -kl_k1(logps, reference_logps)
    return log_ratio.expm1() - log_ratio  # exp(x) - 1 would lose what is left of a small x


def kl_from_logits(logits: Tensor, reference_logits: Tensor) -> Tensor:
    r"""Exact divergence of the next token, with its gradient.

    .. math:: \sum_v \pi(v) \,\big( \log\pi(v) - \log\pi_{ref}(v) \big)

    Tokens that the policy cannot draw (logit ``-inf``) add 0; a token that only the reference cannot draw makes it infinite.

    Args:
        logits, reference_logits: already divided by the temperature, ``[..., V]``.

    Returns:
        Nats, 0 for equal logits, ``[...]``.

    >>> kl_from_logits(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log())
    tensor([0.1438])
    """
    logps = full_precision(logits).log_softmax(-1)
    reference_logps = full_precision(reference_logits).log_softmax(-1)
    possible = logps > -torch.inf
    return (logps.exp() * (logps - reference_logps).where(possible, 0.0)).sum(-1)
