"""From how likely a judge's verdicts are to scores and preferences."""

import torch
from torch import Tensor


def expected_score(option_logps: Tensor) -> Tensor:
    r"""Mean of the scores 1 to n under a judge's probabilities, renormalised over these n options.

    .. math:: s = \sum_{i=1}^{n} i \, \frac{p_i}{\sum_j p_j} \in [1, n]

    Flat log-probs give (n + 1)/2, all mass on option k gives k, and adding a constant to all of them changes nothing. Source: the
    direct annotation of RLAIF, Lee et al. 2023, https://arxiv.org/abs/2309.00267.

    Args:
        option_logps: log-prob of each option from 1 to n in nats, up to a constant, ``[..., n]``.

    Returns:
        Scores, ``[...]``; NaN where no option has any mass.

    >>> expected_score(torch.zeros(10))
    tensor(5.5000)
    """
    values = torch.arange(1, option_logps.shape[-1] + 1, dtype=option_logps.dtype, device=option_logps.device)
    return (option_logps.softmax(-1) * values).sum(-1)


def most_likely_score(option_logps: Tensor) -> Tensor:
    """The likeliest of the scores 1 to n, the mean of those that share the first place.

    Args:
        option_logps: log-prob of each option from 1 to n in nats, up to a constant, ``[..., n]``.

    Returns:
        Scores, ``[...]``; NaN where no option has any mass.

    >>> most_likely_score(torch.tensor([[0.1, 0.5, 0.4], [0.4, 0.2, 0.4]]).log())
    tensor([2., 2.])
    """
    known = option_logps > -torch.inf
    first = (option_logps == option_logps.amax(-1, keepdim=True)) & known
    return expected_score(torch.zeros_like(option_logps).masked_fill(~first, -torch.inf))


def centred_score(scores: Tensor, best: int = 10) -> Tensor:
    r"""Scores from 1 to ``best`` on a scale from -1 to 1: ``(s - 5.5) / 4.5`` for 10.

    >>> centred_score(torch.tensor([1.0, 5.5, 10.0]))
    tensor([-1.,  0.,  1.])
    """
    return (scores - (best + 1) / 2) / ((best - 1) / 2)


def swap_averaged(first_logps: Tensor, second_logps: Tensor, *, tie_margin: float = 0.0) -> Tensor:
    r"""P(a beats b) from a judge that was asked in both orders.

    .. math:: p(a, b) = \tfrac{1}{2} \left[ P(\text{"1"} \mid a, b) + P(\text{"2"} \mid b, a) \right]

    so that ``p(a, b) + p(b, a) = 1``, and a judge that only looks at the position gives 1/2. Source: Lee et al. 2023,
    https://arxiv.org/abs/2309.00267; Guo et al. 2024, https://arxiv.org/abs/2402.04792.

    Args:
        first_logps: log-probs of the verdicts "1" and "2" where a stands first, in nats, up to a constant, ``[..., 2]``.
        second_logps: the same where a stands second, ``[..., 2]``.
        tie_margin: ``|p - 1/2|`` up to which p is set to 1/2 exactly, a tie.

    Returns:
        Probabilities, ``[...]``.

    >>> always_the_second = torch.tensor([0.1, 0.9]).log()
    >>> swap_averaged(always_the_second, always_the_second)
    tensor(0.5000)
    """
    p = (first_logps.softmax(-1)[..., 0] + second_logps.softmax(-1)[..., 1]) / 2
    return settled(p, tie_margin=tie_margin)


def settled(p: Tensor, *, tie_margin: float = 0.0, hard: bool = False) -> Tensor:
    """P(a beats b) with ties at exactly 1/2 and, where ``hard``, every other pair at 0 or 1.

    Args:
        p: probabilities, any shape; NaN stays NaN.
        tie_margin: ``|p - 1/2|`` up to which it is a tie.
        hard: keep the winner only.

    >>> settled(torch.tensor([0.2, 0.501, 0.9]), tie_margin=0.01, hard=True)
    tensor([0.0000, 0.5000, 1.0000])
    """
    p = p.masked_fill((p - 0.5).abs() <= tie_margin, 0.5)
    return p.where((p == 0.5) | p.isnan(), (p > 0.5).to(p.dtype)) if hard else p


def weighted_mean(values: Tensor, weights: Tensor, known: Tensor) -> Tensor:
    r"""Mean over the last axis of what is known; the rest drops out of both sums.

    .. math:: \bar v = \frac{\sum_{i \in known} w_i v_i}{\sum_{i \in known} w_i}

    Multiplying all weights by one number changes nothing, nor does an item of which nothing is known. Source: the reward of a checklist,
    Viswanathan et al. 2025, https://arxiv.org/abs/2507.18624.

    Args:
        values: ``[..., n]``; anything where not known.
        weights: positive, ``[n]`` or ``[..., n]``.
        known: bool, ``[..., n]``.

    Returns:
        Means, ``[...]``; NaN where nothing is known.

    >>> weighted_mean(torch.tensor([1.0, 0.0, torch.nan]), torch.tensor([3.0, 1.0, 9.0]), torch.tensor([True, True, False]))
    tensor(0.7500)
    """
    counted = weights.expand_as(values).where(known, 0.0)
    return (values.where(known, 0.0) * counted).sum(-1) / counted.sum(-1)
