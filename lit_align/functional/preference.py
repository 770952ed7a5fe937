r"""Losses of a pair of responses, of which one should win.

``margins`` are differences of the first response minus the second, of any shape ``[...]``; what they are differences of (log-ratios to
a reference, in nats, for all but SimPO and ORPO) is the caller's business, and so is what a margin is multiplied by. ``labels``
are P(the first wins), of the same shape or a number: 1 for a hard label, 0 for the opposite one. With :math:`\ell` the loss of a hard
label,

.. math:: L(h, p) = p\,\ell(h) + (1 - p)\,\ell(-h)

so swapping the pair and turning the label round changes nothing, and label smoothing by :math:`\epsilon` is the label
:math:`p(1-\epsilon) + (1-p)\epsilon`. All are computed in float32 (float64 for float64 margins), without reduction.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid, softplus

from lit_align.functional.logprobs import full_precision


def dpo_loss(margins: Tensor, *, beta: float, labels: Tensor | float = 1.0) -> Tensor:
    r""":math:`-\log \sigma(\beta h)`; its optimum is ``h = logit(p) / beta``, at infinity for a hard label.

    Source: Direct Preference Optimization, equation 7, https://arxiv.org/abs/2305.18290.

    >>> dpo_loss(torch.tensor([0.0, 4.0]), beta=0.1)
    tensor([0.6931, 0.5130])
    >>> dpo_loss(torch.tensor([4.0]), beta=0.1, labels=torch.tensor([0.25]))
    tensor([0.8130])
    """
    return _labelled(lambda h: -logsigmoid(beta * h), margins, labels)


def ipo_loss(margins: Tensor, *, beta: float, labels: Tensor | float = 1.0) -> Tensor:
    r""":math:`(h - 1/(2\beta))^2`; its optimum is ``h = (2p - 1) / (2 beta)``: it pulls back what has gone further.

    Source: A General Theoretical Paradigm to Understand Learning from Human Preferences, equation 17,
    https://arxiv.org/abs/2310.12036 (its tau is this beta).

    >>> ipo_loss(torch.tensor([0.0, 4.0]), beta=1.0)
    tensor([ 0.2500, 12.2500])
    """
    return _labelled(lambda h: (h - 1 / (2 * beta)).square(), margins, labels)


def slic_loss(margins: Tensor, *, beta: float, labels: Tensor | float = 1.0) -> Tensor:
    r""":math:`\max(0, 1 - \beta h)`: it stops at ``h = 1 / beta``. A soft label can't express strength: the optimum of any
    ``1/2 < p < 1`` is the same.

    Source: SLiC-HF, https://arxiv.org/abs/2305.10425, in the form of OAIF, https://arxiv.org/abs/2402.04792: log-ratios to the
    reference, margin 1, no cross-entropy term.

    >>> slic_loss(torch.tensor([0.0, 4.0]), beta=0.002)
    tensor([1.0000, 0.9920])
    """
    return _labelled(lambda h: (1 - beta * h).clamp(min=0), margins, labels)


def simpo_loss(margins: Tensor, *, beta: float, gamma: float, labels: Tensor | float = 1.0) -> Tensor:
    r""":math:`-\log \sigma(\beta h - \gamma)`, ``h`` a difference of mean log-probs per token, without a reference.

    Source: SimPO, equation 6, https://arxiv.org/abs/2405.14734.

    >>> simpo_loss(torch.tensor([0.8]), beta=2.0, gamma=1.6)
    tensor([0.6931])
    """
    return _labelled(lambda h: -logsigmoid(beta * h - gamma), margins, labels)


def kto_loss(log_ratios: Tensor, *, beta: float, reference_point: Tensor | float, good: Tensor) -> Tensor:
    r"""One response that is good or bad: how little it is valued, :math:`1 - \sigma(\pm\beta(\rho - z))`.

    Source: KTO, equation 8 with both weights 1, https://arxiv.org/abs/2402.01306.

    Args:
        log_ratios: ``log pi(y|x) - log pi_ref(y|x)``, ``[...]``.
        beta: how fast value saturates, per nat.
        reference_point: z, an estimate of ``KL(pi || pi_ref)`` in nats, without gradient.
        good: bool, ``[...]``.

    >>> kto_loss(torch.tensor([2.0, 4.0, 4.0]), beta=0.5, reference_point=2.0, good=torch.tensor([True, True, False]))
    tensor([0.5000, 0.2689, 0.7311])
    """
    sign = torch.where(good, 1.0, -1.0)
    return torch.sigmoid(-sign * beta * (full_precision(log_ratios) - reference_point))


def log_odds(mean_logps: Tensor) -> Tensor:
    r"""``log(p / (1 - p))`` of a mean log-prob per token ``[...]``, as ORPO compares responses.

    A model that is certain of every token has infinite odds; the mean is held at ``-1e-6``. Source: ORPO, equation 4,
    https://arxiv.org/abs/2403.07691.

    >>> log_odds(torch.tensor([0.5]).log())
    tensor([0.])
    """
    wide = full_precision(mean_logps).clamp(max=-1e-6)
    return wide - (-wide.expm1()).log()


def reverse_kl(log_ratios: Tensor) -> Tensor:
    r"""The link of plain DPO: :math:`f'(u) = \log u` up to a constant; ``[...]`` nats to ``[...]``."""
    return full_precision(log_ratios)


def forward_kl(log_ratios: Tensor) -> Tensor:
    r""":math:`1 - 1/u`, with ``u = pi / pi_ref``, ``[...]`` nats to ``[...]``; ``-log u`` is held at most 80.

    Source of this and the next two: Beyond Reverse KL (f-DPO), table 1, https://arxiv.org/abs/2309.16240.

    >>> forward_kl(torch.tensor([0.0, 2.0]).log1p())
    tensor([0.0000, 0.6667])
    """
    return -(-full_precision(log_ratios)).clamp(max=80).expm1()


def jensen_shannon(log_ratios: Tensor) -> Tensor:
    r""":math:`\log (2u / (1 + u))`, with ``u = pi / pi_ref``, ``[...]`` nats to ``[...]``.

    >>> jensen_shannon(torch.tensor([0.0, 2.0]).log1p()).exp()
    tensor([1.0000, 1.5000])
    """
    return math.log(2) - softplus(-full_precision(log_ratios))


def alpha_divergence(log_ratios: Tensor, *, alpha: float) -> Tensor:
    r""":math:`(1 - u^{-\alpha}) / \alpha`, with ``u = pi / pi_ref``, ``[...]`` nats to ``[...]``; ``-alpha log u`` is held at most 80.

    ``alpha -> 0`` is the reverse KL, 1 the forward KL. The paper's alpha; a library that writes 1 - alpha for it means the
    opposite end.

    Raises:
        ValueError: if alpha is not strictly between 0 and 1; the ends are ``reverse_kl`` and ``forward_kl``.

    >>> alpha_divergence(torch.tensor([1.0, 16.0]).log(), alpha=0.25)
    tensor([0., 2.])
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 (reverse_kl) and 1 (forward_kl), got {alpha}.")
    return -(-alpha * full_precision(log_ratios)).clamp(max=80).expm1() / alpha


def _labelled(loss: Callable[[Tensor], Tensor], margins: Tensor, labels: Tensor | float) -> Tensor:
    """The expected loss over who wins; a certain label reads one side only."""
    wide = full_precision(margins)
    if isinstance(labels, float | int) and labels == 1:
        return loss(wide)
    return labels * loss(wide) + (1 - labels) * loss(-wide)
