"""Which responses make a pair: all that differ and were compared, each once, with the better one first."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import (
    all_pairs,
    all_pairs_from_preferences,
    all_pairs_from_scores,
    best_versus_worst,
    bradley_terry,
    same_tokens,
    win_probabilities,
)

NAN = torch.nan
MAKERS = [best_versus_worst, all_pairs_from_scores]
makers = pytest.mark.parametrize("maker", MAKERS)


def everybody(scores):
    return torch.ones_like(scores, dtype=torch.bool)


def pairs_of(mask):
    """``(prompt, winner, loser)`` of each pair."""
    return [tuple(pair) for pair in mask.nonzero().tolist()]


def test_best_against_worst_is_one_pair_of_a_prompt():
    scores = torch.tensor([[0.5, 3.0, -1.0, 3.0], [2.0, 1.0, 1.0, 1.5]])
    assert pairs_of(best_versus_worst(scores, everybody(scores))) == [(0, 1, 2), (1, 0, 1)]


def test_all_pairs_are_all_that_differ_each_once_the_better_first():
    scores = torch.tensor([[0.5, 3.0, -1.0, 3.0]])
    assert pairs_of(all_pairs_from_scores(scores, everybody(scores))) == [(0, 0, 2), (0, 1, 0), (0, 1, 2), (0, 3, 0), (0, 3, 2)]


@makers
def test_ties_are_no_pair(maker):
    scores = torch.full((2, 3), 0.7)
    assert not maker(scores, everybody(scores)).any()


@makers
@pytest.mark.parametrize("filler", [NAN, torch.inf, -torch.inf, 9.0, -9.0])
def test_what_is_not_valid_is_in_no_pair(maker, filler):
    scores = torch.tensor([[filler, 1.0, 2.0], [filler, 1.0, filler], [filler, filler, filler]])
    valid = torch.tensor([[False, True, True], [False, True, False], [False, False, False]])
    assert pairs_of(maker(scores, valid)) == [(0, 2, 1)]


def test_preferences_above_a_half_make_pairs_and_a_coin_flip_does_not():
    preferences = torch.tensor([[[NAN, 0.7, 0.5], [0.3, NAN, NAN], [0.5, NAN, NAN]]])
    assert pairs_of(all_pairs_from_preferences(preferences, torch.ones(1, 3, dtype=torch.bool))) == [(0, 0, 1)]
    assert not all_pairs_from_preferences(preferences, torch.tensor([[True, False, True]])).any()


def test_one_response_can_not_be_compared():
    one = torch.ones(3, 1)
    for maker in MAKERS:
        with pytest.raises(ValueError, match="needs at least two of them, got K = 1"):
            maker(one, everybody(one))
    with pytest.raises(ValueError, match="needs at least two of them, got K = 1"):
        all_pairs_from_preferences(one.unsqueeze(-1), everybody(one))


def test_bradley_terry_is_the_logistic_of_the_difference():
    p = bradley_terry(torch.tensor([[0.0, 1.0, -2.0]]))
    assert p[0, 1, 0].item() == pytest.approx(1 / (1 + torch.e**-1))
    assert_close(p + p.mT, torch.ones_like(p))
    assert_close(p.diagonal(dim1=-2, dim2=-1), torch.full((1, 3), 0.5))


def test_the_same_tokens_are_the_same_wherever_padding_differs():
    tokens = torch.tensor([[[5, 1, 0], [5, 1, 7], [5, 1, 7], [5, 7, 1], [9, 9, 9], [8, 8, 8]]])
    mask = torch.tensor([[[1, 1, 0], [1, 1, 0], [1, 1, 1], [1, 1, 0], [0, 0, 0], [0, 0, 0]]]).bool()
    same = same_tokens(tokens, mask)
    assert same[0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]


def test_a_prompt_that_no_judge_compared_has_pairs_by_its_scores():
    scores = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    preferences = torch.full((3, 3, 3), NAN)
    preferences[0, 0, 1], preferences[0, 1, 0] = 0.9, 0.1
    valid = torch.tensor([[True] * 3, [True] * 3, [False] * 3])
    assert pairs_of(all_pairs(scores, preferences, valid)) == [(0, 0, 1), (1, 1, 0), (1, 2, 0), (1, 2, 1)]
    assert pairs_of(all_pairs(scores, None, valid)) == [(row, *pair) for row in (0, 1) for pair in ((1, 0), (2, 0), (2, 1))]
    sure = win_probabilities(scores, preferences)
    assert_close(sure[0], preferences[0], equal_nan=True)
    assert torch.equal(sure[1:], bradley_terry(scores)[1:])
    assert torch.equal(win_probabilities(scores, None), bradley_terry(scores))
