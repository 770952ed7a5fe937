"""Judges who like length to a known degree, and what is left of them where length is equal."""

import math

import pytest
import torch

from lit_align.evaluation.length import EDGES, by_length, length_controlled
from lit_align.evaluation.win_rate import verdict_rate


def judged(theta: float, phi: float, n: int, *, shift: float = 60.0, seed: int = 0, soft: bool = False):
    """Verdicts drawn from the model itself, of answers that are longer on the average."""
    generator = torch.Generator().manual_seed(seed)
    differences = (torch.randn(n, generator=generator) * 80 + shift).round()
    chance = (theta + phi * (differences / differences.std(correction=0)).tanh()).sigmoid()
    verdicts = chance if soft else (torch.rand(n, generator=generator) < chance).float()
    return verdicts, differences, torch.arange(n)


def test_what_made_the_verdicts_is_found():
    verdicts, differences, prompts = judged(0.4, 1.5, 4000)
    found = length_controlled(verdicts, differences, prompts, resamples=200)
    assert found.value == pytest.approx(1 / (1 + math.exp(-0.4)), abs=0.03)
    assert found.effect == pytest.approx(1.5, abs=0.15)
    assert found.low < 1 / (1 + math.exp(-0.4)) < found.high
    assert found.high - found.low < 0.06
    assert not found.ridge


def test_soft_verdicts_of_the_model_are_fitted_exactly():
    found = length_controlled(*judged(-0.3, 0.8, 40, soft=True), resamples=20)
    assert (found.value, found.effect) == (pytest.approx(1 / (1 + math.exp(0.3)), abs=1e-6), pytest.approx(0.8, abs=1e-5))
    assert found.low == pytest.approx(found.high)


def test_a_judge_that_does_not_look_at_length_gives_the_raw_rate():
    verdicts, differences, prompts = judged(0.5, 0.0, 4000)
    found = length_controlled(verdicts, differences, prompts, resamples=50)
    assert found.value == pytest.approx(verdict_rate(verdicts, prompts).value, abs=0.03)
    assert abs(found.effect) < 0.15


def test_a_judge_that_likes_nothing_but_length_has_no_opinion():
    verdicts, differences, prompts = judged(0.0, 4.0, 1000, shift=80.0)
    assert verdict_rate(verdicts, prompts).value > 0.75
    found = length_controlled(verdicts, differences, prompts, resamples=200)
    assert found.value == pytest.approx(0.5, abs=0.06)
    assert found.low < 0.5 < found.high


def test_swapping_sides_mirrors_it():
    verdicts, differences, prompts = judged(0.4, 1.5, 60)
    there = length_controlled(verdicts, differences, prompts, resamples=100)
    back = length_controlled(1 - verdicts, -differences, prompts, resamples=100)
    assert [back.value, back.low, back.high] == pytest.approx([1 - there.value, 1 - there.high, 1 - there.low])
    assert back.effect == pytest.approx(there.effect)


def test_length_is_in_any_unit():
    verdicts, differences, prompts = judged(0.4, 1.5, 60)
    there, back = (length_controlled(verdicts, d, prompts, resamples=50) for d in (differences, differences * 4.5))
    assert [there.value, there.low, there.effect] == pytest.approx([back.value, back.low, back.effect], abs=1e-6)


def test_the_longer_always_wins_is_said_to_need_a_ridge():
    _, differences, prompts = judged(0.0, 1.0, 100, shift=0.0)
    found = length_controlled((differences > 0).float(), differences, prompts, resamples=50)
    assert found.ridge
    assert found.effect > 2
    assert found.value == pytest.approx(0.5, abs=0.1)
    undecided = (differences > 0).float().where(differences.abs() > 20, 0.5)
    assert not length_controlled(undecided, differences, prompts, resamples=50).ridge


@pytest.mark.parametrize("case", ["same length", "all won", "none"])
def test_where_length_explains_nothing_it_is_the_raw_rate(case):
    verdicts, differences, prompts = (column[: 0 if case == "none" else 20] for column in judged(0.0, 1.0, 20))
    verdicts = torch.ones(20) if case == "all won" else verdicts
    differences = torch.full((20,), 7.0) if case == "same length" else differences
    found, raw = length_controlled(verdicts, differences, prompts), verdict_rate(verdicts, prompts)
    assert (found.value, found.low, found.high, found.effect, found.ridge) == (raw.value, raw.low, raw.high, 0.0, False)


def test_prompts_that_come_again_are_no_evidence():
    verdicts, differences, prompts = judged(0.4, 1.5, 50)
    once = length_controlled(verdicts, differences, prompts)
    often = [length_controlled(verdicts.repeat(4), differences.repeat(4), p) for p in (prompts.repeat(4), torch.arange(200))]
    assert often[0].value == pytest.approx(often[1].value) == pytest.approx(once.value)
    assert [often[0].low, often[0].high] == pytest.approx([once.low, once.high])
    assert often[0].high - often[0].low > 1.6 * (often[1].high - often[1].low)


def test_bins_are_of_the_ratio_of_lengths():
    lengths, rivals = torch.tensor([1.0, 5, 6, 8, 10, 12, 20, 21, 3, 0]), torch.tensor([10.0, 10, 10, 10, 10, 10, 10, 10, 0, 0])
    verdicts = torch.tensor([1.0, 0, 1, 0, 1, 1, 0, 1, 1, 1])
    bins = by_length(verdicts, lengths, rivals, torch.arange(10))
    assert [(b.above, b.below) for b in bins] == [(0.0, 0.5), (0.5, 0.8), (0.8, 1.25), (1.25, 2.0), (2.0, math.inf)]
    assert len(bins) == len(EDGES) + 1
    assert [b.rate.n for b in bins] == [2, 2, 3, 1, 2]  # two empty answers are as long as each other
    assert [b.rate.value for b in bins] == [0.5, 0.5, 1.0, 0.0, 1.0]
    empty = by_length(verdicts[:1], lengths[:1], rivals[:1], torch.arange(1))[-1].rate
    assert (empty.n, empty.low, empty.high) == (0, 0.0, 1.0)


@pytest.mark.parametrize("verdicts", [torch.tensor([0.5, 1.5]), torch.tensor([0.5, math.nan]), torch.zeros(2, 1)])
def test_what_is_no_verdict_is_refused(verdicts):
    with pytest.raises(ValueError, match="Verdicts"):
        length_controlled(verdicts, torch.arange(2.0), torch.arange(2))
