r"""Do several rankings of the same responses agree?"""

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision


def mid_ranks(scores: Tensor, valid: Tensor) -> Tensor:
    """Ranks from 1, the smallest score, among the valid ones; equal scores share the mean of their places. ``[..., K]`` to ``[..., K]``,
    0 where not valid.

    >>> mid_ranks(torch.tensor([3.0, 1.0, 3.0, 9.0]), torch.tensor([True, True, True, False]))
    tensor([2.5000, 1.0000, 2.5000, 0.0000])
    """
    smaller, equal = _compared(scores, valid)
    twice = 2 * smaller.sum(-1) + equal.sum(-1) + 1
    return (twice.to(full_precision(scores).dtype) / 2).where(valid, 0.0)


def kendalls_w(scores: Tensor, valid: Tensor) -> Tensor:
    r"""How well m rankings of the n valid responses to a prompt agree, from 0 (not at all) to 1 (they are one ranking), ``[B]``.

    .. math:: W = \frac{12 \sum_i (R_i - m (n + 1) / 2)^2}{m^2 (n^3 - n) - m \sum_j \sum_t (t^3 - t)}

    with :math:`R_i` the sum of the m ranks of response i, equal scores sharing the mean of their places, and t the sizes of the groups of
    equal scores of ranking j. One ranking agrees with itself; for n = 2 without ties it is :math:`(2 a - 1)^2` where a share a of the
    rankings puts the first ahead. Source: Kendall & Babington Smith 1939; as a filter of prompts, Repeated Ranking,
    https://arxiv.org/abs/2405.18952.

    Args:
        scores: a ranking each, larger is better, ``[M, B, K]``.
        valid: which responses all of them ranked, bool ``[B, K]``.

    Returns:
        1 where no ranking tells any two apart, for none contradicts another; NaN where fewer than two responses are valid.

    >>> both = torch.ones(1, 3, dtype=torch.bool)
    >>> kendalls_w(torch.tensor([[[1.0, 2.0, 3.0]], [[3.0, 2.0, 1.0]]]), both)
    tensor([0.])
    >>> kendalls_w(torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 2.0, 2.0]]]), both)
    tensor([0.9286])
    """
    everywhere = valid.expand_as(scores)
    ranks = mid_ranks(scores, everywhere)  # [M, B, K]
    m, n = len(scores), valid.sum(-1).to(ranks.dtype)  # [], [B]
    spread = (ranks.sum(0) - (m * (n + 1) / 2).unsqueeze(-1)).where(valid, 0.0).square().sum(-1)
    group = _compared(scores, everywhere)[1].sum(-1).to(ranks.dtype)  # size of the group of equal scores that each response is in
    ties = (group.square() - 1).where(everywhere, 0.0).sum((0, -1))  # each of t members brings t^2 - 1
    most = m**2 * (n**3 - n) - m * ties
    return torch.where(n < 2, torch.nan, torch.where(most > 0, 12 * spread / most.clamp(min=1), 1.0))


def _compared(scores: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Which valid j are smaller than, and equal to, i: bool ``[..., K, K]`` at (i, j)."""
    known, other = scores.unsqueeze(-1), scores.unsqueeze(-2)
    both = valid.unsqueeze(-1) & valid.unsqueeze(-2)
    return (other < known) & both, (other == known) & both
