r"""Scores minus a baseline: how much better a response is than what the policy says otherwise.

Axes: ``B`` prompts, ``K`` responses to each. ``valid [B, K]`` marks the scores that exist (None: all of them). The others may hold
anything, NaN included, and never enter the arithmetic. A response that no valid sibling can be compared with comes out as 0,
like one that was never scored; ``comparable`` tells both from a true 0.
"""

import torch
from torch import Tensor

from lit_align.functional.logprobs import full_precision


def require_siblings(scores: Tensor, what: str, otherwise: str = "a batch baseline such as BatchMean()") -> None:
    """Refuse ``[..., K]`` with K < 2: ``what`` compares siblings, and ``otherwise`` is what works without them."""
    if scores.shape[-1] < 2:
        raise ValueError(
            f"{what} compares the responses to one prompt and needs at least two of them, got K = {scores.shape[-1]}. "
            f"Set responses_per_prompt >= 2, or choose {otherwise}."
        )


def comparable(valid: Tensor) -> Tensor:
    """Which responses a group baseline says something about: the valid ones with at least one valid sibling.

    Args:
        valid: bool, ``[B, K]``.

    Returns:
        bool, ``[B, K]``.

    >>> comparable(torch.tensor([[True, True, False], [True, False, False]]))
    tensor([[ True,  True, False],
            [False, False, False]])
    """
    return valid & (valid.sum(-1, keepdim=True) >= 2)


def has_spread(scores: Tensor, valid: Tensor) -> Tensor:
    """Whether at least two valid scores of a prompt differ: without that, its responses can't be told apart.

    Args:
        scores: anything where not valid, ``[B, K]``.
        valid: bool, ``[B, K]``.

    Returns:
        bool, ``[B]``.

    >>> valid = torch.tensor([[True, True], [True, True], [True, False]])
    >>> has_spread(torch.tensor([[1.0, 2.0], [1.0, 1.0], [1.0, 0.0]]), valid)
    tensor([ True, False, False])
    """
    return scores.where(valid, -torch.inf).amax(-1) > scores.where(valid, torch.inf).amin(-1)


def group_centred(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""How much better than the average response to the same prompt, the response itself included in the average.

    .. math:: A_k = r_k - \frac{1}{K} \sum_j r_j = \frac{K-1}{K} \Big( r_k - \frac{1}{K-1} \sum_{j \ne k} r_j \Big)

    So it is ``leave_one_out`` on rewards that are weaker by ``(K-1)/K``: half at K = 2, nothing at K = 1. Adding a constant to the
    scores of a prompt changes nothing; equal scores give exactly 0. Source: the published baseline of Direct Advantage
    Regression, https://arxiv.org/abs/2504.14177.

    Args:
        scores: larger is better, ``[B, K]``.
        valid: bool, ``[B, K]``; K in the formula counts the valid ones.

    Returns:
        Advantages in the unit of ``scores``, float32 (float64 for float64 scores), ``[B, K]``.

    Raises:
        ValueError: at K = 1, where every advantage would be 0.

    >>> group_centred(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-2., -1.,  3.]])
    """
    require_siblings(scores, "group_centred")
    clean, valid = _clean(scores, valid)
    # Measured from one of the scores first, or rounding of the mean would leave equal scores a little off 0.
    first = valid.int().argmax(-1, keepdim=True)
    offset = (clean - clean.gather(-1, first)).where(valid, 0.0)
    mean = offset.sum(-1, keepdim=True) / _count(valid).clamp(min=1)
    return (offset - mean).where(valid, 0.0)


def leave_one_out(scores: Tensor, valid: Tensor | None = None) -> Tensor:
    r"""How much better than the average of the *other* responses to the same prompt.

    .. math:: A_k = r_k - \frac{1}{K-1} \sum_{j \ne k} r_j

    The baseline does not depend on ``y_k``, so policy gradients stay unbiased and the expected target of DAR is its closed form
    at full strength, for any K. Source: Back to Basics (RLOO), https://arxiv.org/abs/2402.14740.

    Args:
        scores: larger is better, ``[B, K]``.
        valid: bool, ``[B, K]``; only valid siblings are averaged.

    Returns:
        Advantages in the unit of ``scores``, float32 (float64 for float64 scores), ``[B, K]``.

    Raises:
        ValueError: at K = 1, where there are no others.

    >>> leave_one_out(torch.tensor([[1.0, 2.0, 6.0]]))
    tensor([[-3.0000, -1.5000,  4.5000]])
    """
    require_siblings(scores, "leave_one_out")
    _, valid = _clean(scores, valid)
    count = _count(valid)
    return group_centred(scores, valid) * count / (count - 1).clamp(min=1)  # in this order: a ratio of integers would be float32


def group_standardised(scores: Tensor, valid: Tensor | None = None, eps: float = 1e-4) -> Tensor:
    r"""How many standard deviations of its own group better than the group's average.

    .. math:: A_k = \frac{r_k - \bar r}{s + \epsilon}, \qquad s^2 = \frac{1}{K-1} \sum_j (r_j - \bar r)^2

    Every prompt gets the same spread, whether its responses differ by much or by noise; at K = 2 only the sign of the
    difference survives. Source: DeepSeekMath (GRPO), https://arxiv.org/abs/2402.03300, which leaves the divisor of ``s`` open:
    K - 1 is what implementations use.

    Args:
        scores: larger is better, ``[B, K]``.
        valid: bool, ``[B, K]``; K in the formula counts the valid ones.
        eps: added to the standard deviation, in the unit of ``scores``, so that equal scores give 0; positive.

    Returns:
        Advantages without unit, float32 (float64 for float64 scores), ``[B, K]``.

    Raises:
        ValueError: at K = 1, where there is no spread.

    >>> group_standardised(torch.tensor([[0.0, 4.0], [0.0, 400.0]])).round(decimals=2)
    tensor([[-0.7100,  0.7100],
            [-0.7100,  0.7100]])
    """
    require_siblings(scores, "group_standardised")
    variance, _ = within_group_variance(scores, valid)
    return group_centred(scores, valid) / (variance.sqrt().unsqueeze(-1) + eps)


def within_group_variance(scores: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """How much the scores of one prompt differ: their unbiased variance, and whether it exists.

    The root of its mean over prompts is the unit in which an anchor's price can be stated (reward per nat) whatever K is:
    unlike the standard deviation of centred scores, it is not smaller by ``sqrt((K-1)/K)``.

    Args:
        scores: larger is better, ``[B, K]``.
        valid: bool, ``[B, K]``.

    Returns:
        The variance, 0 where it does not exist, ``[B]``; True where at least two scores are valid, ``[B]``.

    Raises:
        ValueError: at K = 1, where it exists nowhere.

    >>> within_group_variance(torch.tensor([[1.0, 3.0], [1.0, 3.0]]), torch.tensor([[True, True], [True, False]]))
    (tensor([2., 0.]), tensor([ True, False]))
    """
    require_siblings(scores, "within_group_variance", "a scale that is not measured inside a group, such as BatchStd()")
    _, valid = _clean(scores, valid)
    count = _count(valid).squeeze(-1)
    return group_centred(scores, valid).square().sum(-1) / (count - 1).clamp(min=1), count >= 2


def _clean(scores: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scores with 0 where they are not valid, and the mask."""
    wide = full_precision(scores)
    if valid is None:
        return wide, torch.ones_like(wide, dtype=torch.bool)
    if valid.shape != scores.shape:
        raise ValueError(f"valid must have the shape of scores, {tuple(scores.shape)}, got {tuple(valid.shape)}.")
    return wide.where(valid, 0.0), valid


def _count(valid: Tensor) -> Tensor:
    return valid.sum(-1, keepdim=True)
