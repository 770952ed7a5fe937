"""How labels behave, whoever gave them: counts and sums that add up over chunks and ranks."""

import torch
from torch import Tensor


def flips(seen_first: Tensor) -> Tensor:
    """Pairs whose verdict changes with the order, and pairs asked in both orders, ``[2]`` int64.

    Args:
        seen_first: P(i beats j) as said with i shown first, NaN where not asked, ``[B, K, K]``. A judge that minds no order
            has ``f(i, j) = 1 - f(j, i)``; a pair is flipped if both are on the same side of 1/2.

    >>> flips(torch.tensor([[[float("nan"), 0.9], [0.8, float("nan")]]]))  # whoever is shown first wins
    tensor([1, 1])
    """
    here, there = _above_diagonal(seen_first), _above_diagonal(seen_first.mT)
    asked = ~(here.isnan() | there.isnan())
    return torch.stack([((here - 0.5) * (there - 0.5) > 0).sum(), asked.sum()])


def ties(scores: Tensor, valid: Tensor, preferences: Tensor | None = None) -> Tensor:
    """Pairs of responses to one prompt that nobody tells apart, and pairs compared, ``[2]`` int64.

    Args:
        scores: ``[B, K]``, anything where not valid.
        valid: bool, of the same shape.
        preferences: P(i beats j), NaN where not asked, ``[B, K, K]``; a tie is exactly 1/2. Without them, a tie is two equal scores.

    >>> ties(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[True, True, True]]))
    tensor([1, 3])
    """
    if preferences is not None:
        said = _above_diagonal(preferences)
        return torch.stack([(said == 0.5).sum(), (~said.isnan()).sum()])
    both = _above_diagonal(valid[:, :, None] & valid[:, None, :])
    equal = _above_diagonal(scores[:, :, None] == scores[:, None, :])
    return torch.stack([(equal & both).sum(), both.sum()])


def saturated(scores: Tensor, valid: Tensor, lowest: float, highest: float) -> Tensor:
    """Prompts whose valid scores are all ``lowest`` or all ``highest``, and prompts with at least two valid scores, ``[2]`` int64.

    >>> saturated(torch.tensor([[1.0, 1.0], [0.0, 1.0]]), torch.tensor([[True, True], [True, True]]), 0.0, 1.0)
    tensor([1, 2])
    """
    compared = valid.sum(-1) > 1
    at_an_end = ((scores == lowest) | ~valid).all(-1) | ((scores == highest) | ~valid).all(-1)
    return torch.stack([(at_an_end & compared).sum(), compared.sum()])


def length_moments(scores: Tensor, lengths: Tensor, valid: Tensor) -> Tensor:
    """Products of deviations from the mean of the prompt, ``[3]`` float64: length by score, length by length, score by score.

    Sums of them over chunks and ranks give the correlation of score with length among responses to one prompt,
    ``m[0] / sqrt(m[1] m[2])``: what differs between prompts, such as how long a good answer is, is not in it.

    Args:
        scores: ``[B, K]``, anything where not valid.
        lengths: tokens, ``[B, K]``.
        valid: bool, ``[B, K]``.

    >>> m = length_moments(torch.tensor([[0.0, 1.0], [5.0, 6.0]]), torch.tensor([[1, 3], [9, 11]]), torch.ones(2, 2, dtype=torch.bool))
    >>> m[0] / (m[1] * m[2]).sqrt()
    tensor(1., dtype=torch.float64)
    """
    count = valid.sum(-1, keepdim=True).clamp(min=1)

    def deviations(values: Tensor) -> Tensor:
        known = values.double().where(valid, 0.0)
        return (known - known.sum(-1, keepdim=True) / count).where(valid, 0.0)

    length, score = deviations(lengths), deviations(scores)
    return torch.stack([(length * score).sum(), length.square().sum(), score.square().sum()])


def distribution_distance(first: Tensor, second: Tensor) -> Tensor:
    r"""The Kolmogorov-Smirnov distance of two samples, :math:`\max_x |F(x) - G(x)|` of their shares at or below x, ``[]`` in [0, 1].

    Args:
        first, second: finite values, ``[M]`` and ``[N]``, neither empty.

    >>> distribution_distance(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 3.0]))
    tensor(0.5000)
    """
    first, second = first.sort().values, second.sort().values
    everything = torch.cat([first, second])
    below = [torch.searchsorted(sample, everything, right=True) / len(sample) for sample in (first, second)]
    return (below[0] - below[1]).abs().max()


def _above_diagonal(matrix: Tensor) -> Tensor:
    """Each pair once, ``[B, pairs]``."""
    first, second = torch.triu_indices(matrix.shape[-1], matrix.shape[-1], 1)
    return matrix[:, first, second]
