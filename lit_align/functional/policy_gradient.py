"""Surrogates whose gradient, where the policy is the one that sampled, is the policy gradient.

``log_ratios`` are ``log pi_theta - log pi_t`` of tokens ``[B, K, T]`` in nats, ``advantages`` broadcast to them, ``mask`` (bool) says which
tokens are the response's. Each gives a loss for every token ``[B, K, T]``, to be minimised, and which tokens' ratios it clipped, bool
``[B, K, T]``. What is not in the mask is not meaningful.
"""

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision


def clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, mask: Tensor, *, low: float = 0.2, high: float = 0.2
) -> tuple[Tensor, Tensor]:
    r""":math:`-\min(\rho A, clip(\rho, 1-\epsilon_{low}, 1+\epsilon_{high}) A)`, :math:`\rho` the ratio of the token.

    Sources: PPO, equation 7, https://arxiv.org/abs/1707.06347; two bounds as in DAPO, equation 10, https://arxiv.org/abs/2503.14476.

    >>> clipped_surrogate(torch.tensor([1.5, 1.5]).log(), torch.tensor([1.0, -1.0]), torch.tensor([True, True]), high=0.28)
    (tensor([-1.2800,  1.5000]), tensor([ True, False]))
    """
    return _clipped(full_precision(log_ratios).where(mask, 0.0), advantages, low, high)


def sequence_clipped_surrogate(
    log_ratios: Tensor, advantages: Tensor, mask: Tensor, *, low: float = 3e-4, high: float = 4e-4
) -> tuple[Tensor, Tensor]:
    r"""The same with one ratio per response, :math:`s = \exp(\frac{1}{|y|} \sum_t \log \rho_t)`, repeated at its tokens.

    The mean over a response's tokens is the loss of GSPO. Source: Group Sequence Policy Optimization, equations 5 to 7,
    https://arxiv.org/abs/2507.18071.
    """
    wide = full_precision(log_ratios).where(mask, 0.0)
    mean = wide.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1)
    return _clipped(mean.expand_as(wide), advantages, low, high)


def cispo_surrogate(log_ratios: Tensor, advantages: Tensor, mask: Tensor, *, low: float = 1.0, high: float = 4.0) -> tuple[Tensor, Tensor]:
    r""":math:`-sg[clip(\rho, 1-\epsilon_{low}, 1+\epsilon_{high})]\, A \log \pi_\theta`: a clipped token keeps a gradient.

    ``low = 1`` is no lower bound. The value is of ``log_ratios`` in place of ``log pi``: they differ by what has no gradient.
    Source: MiniMax-M1, equations 4 and 5, https://arxiv.org/abs/2506.13585.

    >>> log_ratios = torch.tensor([2.0, 7.0]).log().requires_grad_()
    >>> losses, clipped = cispo_surrogate(log_ratios, torch.tensor([1.0, 1.0]), torch.tensor([True, True]))
    >>> torch.autograd.grad(losses.sum(), log_ratios)[0], clipped
    (tensor([-2., -5.]), tensor([False,  True]))
    """
    wide = full_precision(log_ratios).where(mask, 0.0)
    ratios = wide.detach().exp()
    held = ratios.clamp(1 - low, 1 + high)
    return -held * advantages * wide, held != ratios


def _clipped(log_ratios: Tensor, advantages: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    ratios = log_ratios.clamp(max=80).exp()  # infinity times the 0 of a clipped gradient would be NaN
    free, held = ratios * advantages, ratios.clamp(1 - low, 1 + high) * advantages
    return -torch.minimum(free, held), held < free


def mean_per_response(losses: Tensor, mask: Tensor) -> Tensor:
    """The mean over a response's tokens, so that every response counts the same: ``[B, K, T]`` to ``[B, K]``. GRPO's, which makes
    a token of a short response count more.

    >>> mean_per_response(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[True, True, False]]]))
    tensor([[2.]])
    """
    return losses.where(mask, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def sum_over(losses: Tensor, mask: Tensor, *, tokens: float) -> Tensor:
    """The sum over a response's tokens divided by a constant: ``[B, K, T]`` to ``[B, K]``. Dr. GRPO's, without bias for a length.
    Source: https://arxiv.org/abs/2503.20783.

    >>> sum_over(torch.tensor([[[1.0, 3.0, 9.0]]]), torch.tensor([[[True, True, False]]]), tokens=8.0)
    tensor([[0.5000]])
    """
    return losses.where(mask, 0.0).sum(-1) / tokens


def kl_to_go(token_kl: Tensor, mask: Tensor) -> Tensor:
    r"""At every token the divergence that is still to come, its own included: :math:`\sum_{i \ge t} \rho_i`, ``[B, K, T]`` to same.

    >>> kl_to_go(torch.tensor([[[1.0, 2.0, 9.0]]]), torch.tensor([[[True, True, False]]]))
    tensor([[[3., 2., 0.]]])
    """
    clean = token_kl.where(mask, 0.0)
    return clean.flip(-1).cumsum(-1).flip(-1)


def overlong_penalty(lengths: Tensor, *, longest: int, cache: int) -> Tensor:
    r"""0 up to ``longest - cache`` tokens, then a straight line to -1 at ``longest``; ``[B, K]`` tokens to ``[B, K]``.

    Source: DAPO, equation 13, https://arxiv.org/abs/2503.14476.

    >>> overlong_penalty(torch.tensor([10, 15, 20]), longest=20, cache=10)
    tensor([ 0.0000, -0.5000, -1.0000])
    """
    return ((longest - cache - lengths) / cache).clamp(-1, 0)
