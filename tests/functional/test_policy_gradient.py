"""Surrogates: the policy gradient where nothing has moved, and which side of each bound still has a gradient."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import (
    cispo_surrogate,
    clipped_surrogate,
    kl_to_go,
    mean_per_response,
    overlong_penalty,
    sequence_clipped_surrogate,
    sum_over,
)

SURROGATES = [clipped_surrogate, sequence_clipped_surrogate, cispo_surrogate]
surrogates = pytest.mark.parametrize("surrogate", SURROGATES)
MASK = torch.tensor([[[True, True, True], [True, True, False], [True, False, False]]])  # lengths 3, 2 and 1
ADVANTAGES = torch.tensor([[[1.5], [-0.5], [0.25]]], dtype=torch.float64)


def gradient(surrogate, ratios, advantage):
    """Value, derivative by the log-prob and whether it was clipped, of one-token responses with these ratios."""
    log_ratios = torch.tensor(ratios, dtype=torch.float64).log().view(1, -1, 1).requires_grad_()
    values, clipped = surrogate(
        log_ratios, torch.full_like(log_ratios, advantage).detach(), torch.ones(1, len(ratios), 1, dtype=torch.bool)
    )
    (slope,) = torch.autograd.grad(values.sum(), log_ratios)
    return values.flatten().tolist(), slope.flatten().tolist(), clipped.flatten().tolist()


@surrogates
def test_where_nothing_has_moved_the_gradient_is_the_policy_gradient(surrogate):
    log_ratios = torch.zeros(1, 3, 3, dtype=torch.float64, requires_grad=True)
    values, clipped = surrogate(log_ratios, ADVANTAGES, MASK)
    (slope,) = torch.autograd.grad(mean_per_response(values, MASK).sum(), log_ratios)
    lengths = MASK.sum(-1, keepdim=True)
    assert_close(slope, (-ADVANTAGES / lengths).expand_as(slope).where(MASK, 0.0))
    assert not clipped.any()


def test_good_tokens_stop_above_and_bad_ones_below():
    """DAPO's bounds: .2 below and .28 above."""
    ratios = [0.7, 0.81, 1.0, 1.27, 1.3]
    surrogate = partial(clipped_surrogate, low=0.2, high=0.28)
    values, slopes, clipped = gradient(surrogate, ratios, 2.0)
    assert values == pytest.approx([-1.4, -1.62, -2.0, -2.54, -2.56])
    assert slopes == pytest.approx([-1.4, -1.62, -2.0, -2.54, 0.0])
    assert clipped == [False, False, False, False, True]
    values, slopes, clipped = gradient(surrogate, ratios, -2.0)
    assert values == pytest.approx([1.6, 1.62, 2.0, 2.54, 2.6])
    assert slopes == pytest.approx([0.0, 1.62, 2.0, 2.54, 2.6])
    assert clipped == [True, False, False, False, False]


def test_cispo_bounds_the_weight_and_keeps_the_gradient():
    surrogate = partial(cispo_surrogate, low=0.5, high=1.0)
    for advantage in (2.0, -2.0):
        _, slopes, clipped = gradient(surrogate, [0.25, 0.6, 1.0, 1.9, 5.0], advantage)
        assert slopes == pytest.approx([-advantage * weight for weight in (0.5, 0.6, 1.0, 1.9, 2.0)])
        assert clipped == [True, False, False, False, True]


def test_a_response_has_the_geometric_mean_of_its_tokens_ratios():
    """Lengths 1 and 2: exp(.3) and exp((.3 - .1) / 2), whatever is behind the mask."""
    log_ratios = torch.tensor([[[0.3, 9.0], [0.3, -0.1]]], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([[[True, False], [True, True]]])
    values, _ = sequence_clipped_surrogate(log_ratios, torch.tensor([[[1.0], [1.0]]]), mask, low=1.0, high=9.0)
    per_response = mean_per_response(values, mask)
    assert_close(per_response, torch.tensor([[-math.exp(0.3), -math.exp(0.1)]], dtype=torch.float64))
    (slope,) = torch.autograd.grad(per_response.sum(), log_ratios)
    halves = -math.exp(0.1) / 2
    assert_close(slope, torch.tensor([[[-math.exp(0.3), 0.0], [halves, halves]]], dtype=torch.float64))


def test_a_response_is_clipped_as_a_whole():
    log_ratios = torch.tensor([[[0.5, -0.5], [0.5, 0.5]]])
    _, clipped = sequence_clipped_surrogate(log_ratios, torch.ones(1, 2, 1), torch.ones(1, 2, 2, dtype=torch.bool), low=0.2, high=0.2)
    assert clipped.tolist() == [[[False, False], [True, True]]]
    _, clipped = clipped_surrogate(log_ratios, torch.ones(1, 2, 1), torch.ones(1, 2, 2, dtype=torch.bool), low=0.2, high=0.2)
    assert clipped.tolist() == [[[True, False], [True, True]]]


@surrogates
@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_log_ratios_of_any_size_have_finite_losses_and_gradients(surrogate, advantage):
    log_ratios = torch.tensor([[[-1e4], [-100.0], [100.0], [1e4]]], requires_grad=True)
    values, _ = surrogate(log_ratios, torch.full((1, 4, 1), advantage), torch.ones(1, 4, 1, dtype=torch.bool))
    assert values.isfinite().all()
    assert torch.autograd.grad(values.sum(), log_ratios)[0].isfinite().all()


@surrogates
def test_what_is_behind_the_mask_reaches_nothing(surrogate):
    clean = torch.full((1, 3, 3), 0.01, dtype=torch.float64)
    results = []
    for filler in (0.0, 50.0, torch.nan):
        log_ratios = clean.where(MASK, filler).requires_grad_()
        values, _ = surrogate(log_ratios, ADVANTAGES, MASK)
        per_response = sum_over(values, MASK, tokens=4)
        (slope,) = torch.autograd.grad(per_response.sum(), log_ratios)
        assert (slope[~MASK] == 0).all()
        results.append(per_response)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_float64_stays():
    for surrogate in SURROGATES:
        assert surrogate(torch.zeros(1, 3, 3, dtype=torch.float64), ADVANTAGES, MASK)[0].dtype == torch.float64


def test_means_and_sums_of_a_response():
    losses = torch.tensor([[[1.0, 2.0, 6.0], [1.0, 2.0, torch.nan], [5.0, torch.nan, torch.nan]]])
    assert mean_per_response(losses, MASK).tolist() == [[3.0, 1.5, 5.0]]
    assert sum_over(losses, MASK, tokens=2).tolist() == [[4.5, 1.5, 2.5]]
    assert mean_per_response(losses, torch.zeros_like(MASK)).tolist() == [[0.0, 0.0, 0.0]]


def test_a_token_answers_for_its_own_divergence_and_what_follows():
    token_kl = torch.tensor([[[1.0, 2.0, 4.0], [1.0, 2.0, torch.nan], [5.0, torch.nan, 9.0]]])
    assert kl_to_go(token_kl, MASK).where(MASK, 0.0).tolist() == [[[7.0, 6.0, 4.0], [3.0, 2.0, 0.0], [5.0, 0.0, 0.0]]]


def test_the_overlong_penalty_falls_linearly_over_its_cache():
    lengths = torch.tensor([[1, 12, 13, 16, 19, 20, 40]])
    assert_close(overlong_penalty(lengths, longest=20, cache=8), torch.tensor([[0.0, 0.0, -0.125, -0.5, -0.875, -1.0, -1.0]]))
