"""Ratings by hand, by the condition of the optimum, and by what may not change them."""

import math
from itertools import combinations

import pytest
import torch

from lit_align.evaluation.ratings import bradley_terry
from lit_align.types import UserError


def games(strengths: list[float], prompts: int, seed: int = 0):
    """Everyone meets everyone once per prompt."""
    generator = torch.Generator().manual_seed(seed)
    pairs = list(combinations(range(len(strengths)), 2))
    first, second = (torch.tensor(side).repeat(prompts) for side in zip(*pairs, strict=True))
    chance = (torch.tensor(strengths)[first] - torch.tensor(strengths)[second]).sigmoid()
    return (
        (torch.rand(len(first), generator=generator) < chance).float(),
        first,
        second,
        torch.arange(prompts).repeat_interleave(len(pairs)),
    )


def two(verdicts):
    n = len(verdicts)
    return torch.tensor(verdicts), torch.zeros(n, dtype=torch.long), torch.ones(n, dtype=torch.long), torch.arange(n), 2


@pytest.mark.parametrize(("verdicts", "wins"), [([1.0, 1.0, 0.0], 2.0), ([1.0, 0.5], 1.5), ([0.9, 0.2, 1.0, 0.7], 2.8), ([1.0] * 5, 5.0)])
def test_two_players_are_the_log_odds_of_wins_with_half_a_win_each_way(verdicts, wins):
    better, worse = bradley_terry(*two(verdicts), resamples=20)
    assert better.value - worse.value == pytest.approx(math.log((wins + 0.5) / (len(verdicts) - wins + 0.5)), abs=1e-7)
    assert better.value == pytest.approx(-worse.value)


def test_the_gradient_is_zero_at_the_optimum_and_the_mean_too():
    verdicts, first, second, prompts = games([1.0, 0.2, -0.4, -0.8], 30)
    r = torch.tensor([rating.value for rating in bradley_terry(verdicts, first, second, prompts, 4, resamples=10)], dtype=torch.float64)
    assert float(r.sum()) == pytest.approx(0, abs=1e-12)
    surplus = torch.zeros(4, dtype=torch.float64)  # wins, those that were expected taken off
    excess = verdicts.double() - (r[first] - r[second]).sigmoid()
    surplus.index_add_(0, first, excess).index_add_(0, second, -excess)
    for i, j in combinations(range(4), 2):  # the halves: one game, half of it won
        half = 0.5 - float(torch.sigmoid(r[i] - r[j]))
        surplus[i] += half
        surplus[j] -= half
    assert surplus.abs().max() < 1e-5
    assert r.diff().max() < 0


def test_neither_the_order_of_games_nor_of_sides_nor_of_players_matters():
    verdicts, first, second, prompts = games([0.5, 0.0, -0.5], 20)
    expected = bradley_terry(verdicts, first, second, prompts, 3, resamples=100)
    flip = torch.arange(len(verdicts)) % 2 == 0
    turned = bradley_terry(
        (1 - verdicts).where(flip, verdicts), second.where(flip, first), first.where(flip, second), prompts, 3, resamples=100
    )
    shuffled = torch.randperm(len(verdicts), generator=torch.Generator().manual_seed(1))
    mixed = bradley_terry(*(t[shuffled] for t in (verdicts, first, second, prompts)), 3, resamples=100)
    renamed = bradley_terry(verdicts, 2 - first, 2 - second, prompts, 3, resamples=100)[::-1]
    for other in (turned, mixed, renamed):
        for a, b in zip(expected, other, strict=True):
            assert (b.value, b.low, b.high) == (
                pytest.approx(a.value, abs=1e-6),
                pytest.approx(a.low, abs=1e-5),
                pytest.approx(a.high, abs=1e-5),
            )


def test_strengths_are_found_also_of_players_that_never_met():
    verdicts, first, second, prompts = games([1.0, 0.0, -1.0], 3000)
    met = (first == 0) & (second == 1) | (first == 1)  # 0 and 2 don't meet
    found = bradley_terry(verdicts[met], first[met], second[met], prompts[met], 3, resamples=50)
    assert [r.value for r in found] == pytest.approx([1.0, 0.0, -1.0], abs=0.1)
    for rating, truth in zip(found, (1.0, 0.0, -1.0), strict=True):
        assert rating.low - 0.05 < truth < rating.high + 0.05
        assert rating.high - rating.low < 0.3


def test_intervals_are_of_prompts():
    verdicts, first, second, prompts = games([0.5, -0.5], 40)
    once = bradley_terry(verdicts, first, second, prompts, 2)
    same, naive = (
        bradley_terry(verdicts.repeat(4), first.repeat(4), second.repeat(4), p, 2) for p in (prompts.repeat(4), torch.arange(160))
    )
    assert same[0].high - same[0].low == pytest.approx(once[0].high - once[0].low, rel=0.15)
    assert same[0].high - same[0].low > 1.6 * (naive[0].high - naive[0].low)


def test_nothing_but_wins_is_not_certainty():
    """Curvature of 21 games, one of them the two halves, at p = 20.5 / 21; a rating is half the difference."""
    verdicts = two([1.0] * 20)
    best, worst = bradley_terry(*verdicts, resamples=50)
    error = 0.5 / math.sqrt(21 * (20.5 / 21) * (0.5 / 21))
    assert best.high - best.value == pytest.approx(1.959963985 * error, rel=1e-6) == pytest.approx(best.value - best.low)
    assert worst.low == pytest.approx(-best.high)
    many = bradley_terry(*(t.repeat(3) for t in verdicts[:4]), 2, resamples=50)[0]
    assert many.value > best.value
    assert many.high - many.value > 0.9 * (best.high - best.value)  # the same 20 prompts, thrice


def test_players_without_a_connection_are_named():
    with pytest.raises(UserError, match="connects number 0 with 2, 3"):
        bradley_terry(torch.ones(2), torch.tensor([0, 2]), torch.tensor([1, 3]), torch.arange(2), 4)
    with pytest.raises(ValueError, match="Nobody plays against themselves"):
        bradley_terry(torch.ones(1), torch.zeros(1).long(), torch.zeros(1).long(), torch.arange(1), 2)
