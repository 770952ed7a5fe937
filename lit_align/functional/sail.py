r"""What the gradient of a preference loss lacks where the data depend on the policy.

The loss of a pair, :math:`\ell_z = -\log\sigma(\beta h_z)` with the label :math:`z`, is averaged over answers and labels. Where the
policy wrote the answers, or drew the label, that average moves with it, and its gradient has two terms more:

.. math:: \nabla E[\ell_z] = E[\nabla \ell_z] + E\big[ \ell_z\, \nabla (\log\pi(y_1) + \log\pi(y_2)) \big] + E[\ell_z\, \nabla\log p(z)]

With labels of the policy's own, :math:`p(z) = \sigma(\beta h_z) = e^{-\ell_z}`, the last is :math:`-E[\nabla \ell_z^2 / 2]`. Here are
losses whose gradients are these terms, sample by sample. Source: SAIL, https://arxiv.org/abs/2406.15567, whose released code has
the second with the opposite sign and another scale.
"""

import torch
from torch import Tensor

from lit_align.functional.distributed import global_sum
from lit_align.functional.logprobs import full_precision


def own_labels(margins: Tensor, uniforms: Tensor, *, beta: float) -> Tensor:
    r"""Whether the first of two wins by the policy's own law, :math:`u < \sigma(\beta h)`, as bool ``[...]``.

    Args:
        margins: log-ratio to the reference of the first minus that of the second, in nats, ``[...]``; without gradient.
        uniforms: in [0, 1), of a shape that broadcasts.
        beta: log-odds per nat.

    >>> own_labels(torch.tensor([0.0, 0.0, 40.0]), torch.tensor([0.49, 0.5, 0.9]), beta=0.1)
    tensor([ True, False,  True])
    """
    return uniforms < (beta * full_precision(margins.detach())).sigmoid()


def label_law_loss(losses: Tensor) -> Tensor:
    r"""Minus half the square of the losses of pairs whose labels are the policy's, ``[...]``.

    With it, :math:`\ell + c \cdot (-\ell^2/2)` has the slope :math:`-(1 + c \log\sigma(m))\,\sigma(-m)` in the log-odds ``m``.

    >>> label_law_loss(torch.tensor([0.0, 2.0]))
    tensor([-0., -2.])
    """
    return -full_precision(losses).square() / 2


def answer_law_loss(losses: Tensor, logps: Tensor, baselines: Tensor) -> Tensor:
    r""":math:`(\ell - b)(\log\pi(y_1) + \log\pi(y_2))` of pairs whose answers are the policy's, the bracket without gradient.

    A dear pair becomes less likely: both of its answers do.

    Args:
        losses: of the pairs, ``[...]``.
        logps: sum of the log-probs of both answers in nats, ``[...]``.
        baselines: b, which does not depend on the pair, of a shape that broadcasts.

    >>> answer_law_loss(torch.tensor([0.5, 2.0]), torch.tensor([-3.0, -4.0]), torch.tensor(1.0))
    tensor([ 1.5000, -4.0000])
    """
    return (full_precision(losses.detach()) - baselines) * full_precision(logps)


def leave_row_out(losses: Tensor, counted: Tensor) -> Tensor:
    """The mean loss of the pairs of all *other* rows, on all ranks: a baseline that does not depend on a row's own answers.

    A mean with the row's own in it would make the term that it is subtracted in smaller by the share of the row.

    Args:
        losses: ``[B, K, K]``, anything where not counted.
        counted: bool, of the same shape.

    Returns:
        ``[B]`` without gradient, 0 where no other row has a pair. A collective: every rank must call it.

    >>> leave_row_out(torch.tensor([1.0, 2.0, 6.0]).view(3, 1, 1), torch.ones(3, 1, 1, dtype=torch.bool))
    tensor([4.0000, 3.5000, 1.5000])
    """
    own = full_precision(losses.detach()).where(counted, 0.0).sum((-1, -2))  # [B]
    pairs = counted.sum((-1, -2)).to(own.dtype)
    total, number = global_sum(torch.stack([own.sum(), pairs.sum()]))
    others = number - pairs
    return ((total - own) / others.clamp(min=1)).where(others > 0, 0.0)
