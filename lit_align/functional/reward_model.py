r"""Losses of a reward model: what its scores say of who wins, against what people said.

``margins`` are differences of scores, the first response's minus the second's, of any shape ``[...]``; ``labels`` are P(the first
wins), of the same shape or a number. All are computed in float32 (float64 for float64 input), without reduction.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from lit_align.functional.logprobs import full_precision


def bradley_terry_loss(margins: Tensor, labels: Tensor | float = 1.0, *, target_margin: Tensor | float = 0.0) -> Tensor:
    r"""How unlikely Bradley-Terry finds the label, ``[...]``.

    .. math:: L(d) = -p \log \sigma(d - m) - (1 - p) \log \sigma(m - d)

    Its optimum is ``d = m + logit(p)``, at infinity for a hard label; there :math:`\sigma(d - m) = p`. Sources: InstructGPT,
    equation 1, https://arxiv.org/abs/2203.02155; the margin of Llama 2, equation 2, https://arxiv.org/abs/2307.09288.

    Args:
        margins: d, ``[...]``.
        labels: p.
        target_margin: m, how far ahead a certain winner should be; no less than 0 for a pair whose first should win.

    >>> bradley_terry_loss(torch.tensor([0.0, 2.0]))
    tensor([0.6931, 0.1269])
    >>> bradley_terry_loss(torch.tensor([2.0]), target_margin=2.0)
    tensor([0.6931])
    """
    beyond = full_precision(margins) - target_margin
    return labels * softplus(-beyond) + (1 - labels) * softplus(beyond)


def plackett_luce_loss(values: Tensor, beats: Tensor) -> Tensor:
    r"""A ranking as choices of the best of what is left, one term for every response that beats another, ``[B, K]``.

    .. math:: L_i = \log \sum_{j \in \{i\} \cup W_i} e^{v_j} - v_i, \qquad W_i = \{j : i \text{ beats } j\}

    Their sum over a prompt whose responses are all ranked is minus the log-likelihood of the ranking. A response that beats nobody has
    a term of exactly 0, and of two that are equally good neither is held against the other. For K = 2 it is `bradley_terry_loss`; a
    constant added to all values changes nothing. Source: Principled RLHF from pairwise or K-wise comparisons, section 4,
    https://arxiv.org/abs/2301.11270.

    Args:
        values: v, ``[B, K]``.
        beats: bool, whether response i is ranked above j, ``[B, K, K]``.

    >>> scores = torch.tensor([[1.0, 3.0, 2.0]])
    >>> plackett_luce_loss(torch.zeros(1, 3), scores.unsqueeze(-1) > scores.unsqueeze(-2))
    tensor([[0.0000, 1.0986, 0.6931]])
    """
    wide = full_precision(values)
    ahead = (wide.unsqueeze(-2) - wide.unsqueeze(-1)).where(beats, -math.inf)  # v_j - v_i, [B, K, K]
    return torch.cat([ahead, torch.zeros_like(ahead[..., :1])], -1).logsumexp(-1)


def smoothed_labels(labels: Tensor, margins: Tensor, *, rate: float) -> Tensor:
    r"""Labels moved towards what the model has come to believe, ``[...]`` without gradient.

    .. math:: p \leftarrow (1 - b)\,p + b\,\sigma(d)

    A pair that is seen often is learnt, its label follows; one that contradicts the others keeps a label that the model disbelieves, and
    loses its weight. Fixed point: :math:`p = \sigma(d)`. Source: Iterative Data Smoothing, algorithm 1,
    https://arxiv.org/abs/2401.16335.

    Args:
        labels: p, ``[...]``.
        margins: d of the model as it is now, ``[...]``.
        rate: b, from 0 (labels stay) to 1 (they are the model's).

    >>> smoothed_labels(torch.tensor([1.0]), torch.tensor([0.0]), rate=0.2)
    tensor([0.9000])
    """
    return (1 - rate) * labels + rate * full_precision(margins.detach()).sigmoid()
