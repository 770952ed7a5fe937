"""Identities of a judge's read-out, in float64."""

import math

import pytest
import torch

from lit_align.functional import centred_score, expected_score, most_likely_score, settled, swap_averaged, weighted_mean

LOGPS = torch.randn(50, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3


def test_flat_verdicts_are_the_middle():
    flat = torch.full((10,), -7.0, dtype=torch.float64)
    assert expected_score(flat).item() == pytest.approx(5.5, abs=1e-12)
    assert centred_score(expected_score(flat)).item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("k", range(1, 11))
def test_a_certain_verdict_is_itself(k):
    logps = torch.full((10,), -math.inf, dtype=torch.float64)
    logps[k - 1] = -3.0
    assert expected_score(logps).item() == pytest.approx(k, abs=1e-12)


def test_the_unit_of_mass_does_not_matter():
    torch.testing.assert_close(expected_score(LOGPS), expected_score(LOGPS - 123.0), atol=1e-6, rtol=0)


def test_it_is_the_mean_of_the_probabilities():
    p = LOGPS.exp() / LOGPS.exp().sum(-1, keepdim=True)
    by_hand = sum(i * p[:, i - 1] for i in range(1, 11))
    torch.testing.assert_close(expected_score(LOGPS), by_hand, atol=1e-6, rtol=0)
    assert ((expected_score(LOGPS) >= 1) & (expected_score(LOGPS) <= 10)).all()


def test_the_scale_ends_at_one():
    assert centred_score(torch.tensor([1.0, 3.25, 5.5, 10.0])).tolist() == [-1.0, -0.5, 0.0, 1.0]


def test_swapping_gives_the_complement():
    ab, ba = LOGPS[:, :2], LOGPS[:, 2:4]
    torch.testing.assert_close(swap_averaged(ab, ba) + swap_averaged(ba, ab), torch.ones(50, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("bias", [-5.0, 0.3, 40.0])
def test_a_constant_preference_for_a_place_is_no_preference(bias):
    said = torch.tensor([0.0, bias], dtype=torch.float64)
    assert swap_averaged(said, said).item() == pytest.approx(0.5, abs=1e-12)


def test_whoever_wins_in_both_orders_wins():
    first, second = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.3, 0.7]).log()
    assert swap_averaged(first, second).item() == pytest.approx(0.8)


def test_a_tie_is_exactly_half_and_nan_stays():
    first = torch.tensor([[0.5009, 0.4991], [0.502, 0.498], [math.nan, 0.5]], dtype=torch.float64).log()
    second = torch.tensor([0.5, 0.5], dtype=torch.float64).log()
    p = swap_averaged(first, second.expand(3, 2), tie_margin=6e-4)
    assert p[0].item() == 0.5
    assert p[1].item() == pytest.approx(0.501, abs=1e-9)
    assert p[2].isnan()


def test_the_likeliest_score_is_shared_by_those_that_tie():
    p = torch.tensor([[0.2, 0.5, 0.3], [0.4, 0.2, 0.4], [1 / 3, 1 / 3, 1 / 3], [0.0, 0.0, 1.0]], dtype=torch.float64)
    assert most_likely_score(p.log()).tolist() == [2.0, 2.0, 2.0, 3.0]
    torch.testing.assert_close(most_likely_score(p.log()), most_likely_score(p.log() - 7.0))
    assert most_likely_score(torch.full((3,), -math.inf)).isnan()


def test_a_hard_verdict_keeps_winner_ties_and_what_is_unknown():
    p = torch.tensor([0.0, 0.49, 0.4999, 0.5, 0.51, 1.0, math.nan], dtype=torch.float64)
    hard = settled(p, tie_margin=1e-3, hard=True)
    assert hard[:-1].tolist() == [0.0, 0.0, 0.5, 0.5, 1.0, 1.0]
    assert hard[-1].isnan()
    assert settled(p)[:-1].tolist() == p[:-1].tolist()


def test_what_is_not_known_drops_out_of_a_weighted_mean():
    values = torch.tensor([[1.0, 3.0, math.nan], [1.0, 3.0, 8.0]], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0, 2.0], dtype=torch.float64)
    assert weighted_mean(values, weights, values.isfinite()).tolist() == [1.5, 22 / 6]
    torch.testing.assert_close(weighted_mean(values, 5 * weights, values.isfinite()), weighted_mean(values, weights, values.isfinite()))
    assert weighted_mean(values, weights, values < 0).isnan().all()
