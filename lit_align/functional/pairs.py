"""Which two responses to a prompt are compared: matrices ``[B, K, K]`` whose entry ``(i, j)`` is about i beating j.

A pair stands in the matrix once, where its winner comes first. Equal scores, a preference of exactly 1/2 and what was not valid make no
pair: a coin flip is no label.
"""

import torch
from torch import Tensor

from lit_align.functional.advantages import has_spread, require_siblings
from lit_align.functional.logprobs import full_precision


def best_versus_worst(scores: Tensor, valid: Tensor) -> Tensor:
    """The best valid response of a prompt against its worst: at most one pair; of equal ones the first.

    Args:
        scores: larger is better, ``[B, K]``.
        valid: bool, ``[B, K]``.

    Returns:
        bool, ``[B, K, K]``.

    Raises:
        ValueError: at K = 1.

    >>> best_versus_worst(torch.tensor([[1.0, 3.0, 2.0], [1.0, 1.0, 1.0]]), torch.ones(2, 3, dtype=torch.bool)).nonzero().tolist()
    [[0, 1, 0]]
    """
    require_siblings(scores, "best_versus_worst", "an algorithm that needs no pairs, such as DAR or KTO")
    best = scores.where(valid, -torch.inf).argmax(-1, keepdim=True)  # [B, 1]
    worst = scores.where(valid, torch.inf).argmin(-1, keepdim=True)
    differ = has_spread(scores, valid).unsqueeze(-1)
    first = torch.zeros_like(valid).scatter(-1, best, differ)
    second = torch.zeros_like(valid).scatter(-1, worst, differ)
    return first.unsqueeze(-1) & second.unsqueeze(-2)


def all_pairs_from_scores(scores: Tensor, valid: Tensor) -> Tensor:
    """Every two valid responses of a prompt whose scores differ; ``[B, K]`` to bool ``[B, K, K]``.

    >>> all_pairs_from_scores(torch.tensor([[1.0, 1.0, 2.0]]), torch.tensor([[True, True, True]])).nonzero().tolist()
    [[0, 2, 0], [0, 2, 1]]
    """
    require_siblings(scores, "all_pairs_from_scores", "an algorithm that needs no pairs, such as DAR or KTO")
    return _both(valid) & (scores.unsqueeze(-1) > scores.unsqueeze(-2))


def all_pairs_from_preferences(preferences: Tensor, valid: Tensor) -> Tensor:
    """Every two valid responses of which one was preferred; ``[B, K, K]`` (NaN where not asked) to bool ``[B, K, K]``.

    >>> all_pairs_from_preferences(torch.tensor([[[torch.nan, 0.7], [0.3, torch.nan]]]), torch.tensor([[True, True]])).nonzero().tolist()
    [[0, 0, 1]]
    """
    require_siblings(valid, "all_pairs_from_preferences", "an algorithm that needs no pairs, such as DAR or KTO")
    return _both(valid) & (preferences > 0.5)


def all_pairs(scores: Tensor, preferences: Tensor | None, valid: Tensor) -> Tensor:
    """Every two valid responses of which one was preferred: of a prompt in which a judge compared any two, by its preferences, of
    others by the scores, ``[B, K, K]``.

    >>> judged = torch.tensor([[[torch.nan, 0.3], [0.7, torch.nan]], [[torch.nan] * 2] * 2])
    >>> all_pairs(torch.tensor([[2.0, 1.0], [2.0, 1.0]]), judged, torch.ones(2, 2, dtype=torch.bool)).nonzero().tolist()
    [[0, 1, 0], [1, 0, 1]]
    """
    by_scores = all_pairs_from_scores(scores, valid)
    if preferences is None:
        return by_scores
    return all_pairs_from_preferences(preferences, valid).where(was_compared(preferences), by_scores)


def win_probabilities(scores: Tensor, preferences: Tensor | None) -> Tensor:
    """P(i beats j) as the annotator sees it: a judge's, NaN where it was not asked; of a prompt that none compared, `bradley_terry`
    of the scores, ``[B, K, K]``."""
    by_scores = bradley_terry(scores)
    return by_scores if preferences is None else preferences.where(was_compared(preferences), by_scores)


def was_compared(preferences: Tensor) -> Tensor:
    """In which prompts a judge compared any two responses, bool ``[B, 1, 1]``."""
    return (~preferences.isnan()).any(-1, keepdim=True).any(-2, keepdim=True)


def bradley_terry(scores: Tensor) -> Tensor:
    r"""P(i beats j) = :math:`\sigma(r_i - r_j)`: what scores of a reward model say of a pair, ``[B, K]`` to ``[B, K, K]``."""
    wide = full_precision(scores)
    return (wide.unsqueeze(-1) - wide.unsqueeze(-2)).sigmoid()


def same_tokens(tokens: Tensor, mask: Tensor) -> Tensor:
    """Which two responses of a prompt are the same, token for token: ``[B, K, T]`` twice to bool ``[B, K, K]``.

    >>> same_tokens(torch.tensor([[[5, 1], [5, 1], [5, 1]]]), torch.tensor([[[True, True], [True, True], [True, False]]]))[0, 0].tolist()
    [True, True, False]
    """
    shown = tokens.where(mask, -1)
    return (shown.unsqueeze(2) == shown.unsqueeze(1)).all(-1)


def _both(valid: Tensor) -> Tensor:
    return valid.unsqueeze(-1) & valid.unsqueeze(-2)
