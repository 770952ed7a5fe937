"""Losses of a reward model: their limits, their optima and what must not change them."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import bradley_terry_loss, dpo_loss, plackett_luce_loss, smoothed_labels

VALUES = torch.tensor([[0.3, -1.2, 2.0, 0.7], [1.0, 1.5, -0.4, 0.2]], dtype=torch.float64)
SCORES = torch.tensor([[1.0, 3.0, 2.0, 0.0], [0.5, 0.1, 0.9, 0.7]])
MARGINS = torch.tensor([-2.0, -0.1, 0.0, 0.4, 3.0], dtype=torch.float64)


def beats(scores: torch.Tensor) -> torch.Tensor:
    return scores.unsqueeze(-1) > scores.unsqueeze(-2)


def test_bradley_terry_is_the_log_likelihood_of_the_label():
    for label in (0.0, 0.3, 1.0):
        won = MARGINS.sigmoid()
        assert_close(bradley_terry_loss(MARGINS, label), -(label * won.log() + (1 - label) * (1 - won).log()))
    assert_close(bradley_terry_loss(MARGINS), dpo_loss(MARGINS, beta=1.0))


def test_a_margin_moves_the_whole_loss():
    labels = torch.tensor([1.0, 0.2, 0.5, 0.9, 0.0], dtype=torch.float64)
    expected = -(labels * (MARGINS - 0.7).sigmoid().log() + (1 - labels) * (0.7 - MARGINS).sigmoid().log())
    assert_close(bradley_terry_loss(MARGINS, labels, target_margin=0.7), expected)


def test_turning_a_pair_round_changes_nothing():
    labels = torch.tensor([1.0, 0.2, 0.5, 0.9, 0.0], dtype=torch.float64)
    there, back = (bradley_terry_loss(sign * MARGINS, label, target_margin=sign * 0.7) for sign, label in ((1, labels), (-1, 1 - labels)))
    assert_close(there, back)


@pytest.mark.parametrize(("label", "margin"), [(0.8, 0.0), (0.3, 0.5)])
def test_its_optimum_is_the_log_odds_beyond_the_margin(label: float, margin: float):
    best = torch.tensor(margin + math.log(label / (1 - label)), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(bradley_terry_loss(best, label, target_margin=margin), best)
    assert abs(slope) < 1e-12


def test_large_margins_stay_finite():
    assert_close(bradley_terry_loss(torch.tensor([-1000.0, 1000.0])), torch.tensor([1000.0, 0.0]))


def test_a_ranking_is_likely_by_the_choices_that_make_it():
    """And the rankings of all orders are all there is."""
    for row, scores in zip(VALUES, SCORES, strict=True):
        left, expected = scores.argsort(descending=True).tolist(), torch.zeros((), dtype=torch.float64)
        while left:
            expected = expected - row[left].log_softmax(0)[0]
            left = left[1:]
        assert_close(plackett_luce_loss(row.unsqueeze(0), beats(scores).unsqueeze(0)).sum(), expected)
    orders = torch.tensor(list(itertools.permutations(range(4))))
    losses = plackett_luce_loss(VALUES[:1].expand(len(orders), 4), beats(orders)).sum(-1)
    assert_close((-losses).exp().sum(), torch.ones((), dtype=torch.float64))


def test_a_ranking_of_two_is_bradley_terry():
    values, scores = VALUES[:, :2], SCORES[:, :2]
    winners_first = torch.stack([row[order] for row, order in zip(values, scores.argsort(descending=True), strict=True)])
    assert_close(plackett_luce_loss(values, beats(scores)).sum(-1), bradley_terry_loss(winners_first[:, 0] - winners_first[:, 1]))


def test_a_constant_changes_no_ranking():
    shift = torch.tensor([[5.0], [-3.0]], dtype=torch.float64)
    assert_close(plackett_luce_loss(VALUES + shift, beats(SCORES)), plackett_luce_loss(VALUES, beats(SCORES)))


def test_of_two_that_are_equally_good_neither_is_held_against_the_other():
    tied = beats(torch.tensor([[2.0, 2.0, 1.0]]))
    values = torch.tensor([[0.4, -0.9, 0.1]], dtype=torch.float64)
    found = plackett_luce_loss(values, tied)
    assert_close(found[0, :2], bradley_terry_loss(values[0, :2] - values[0, 2]))
    assert found[0, 2] == 0
    assert (plackett_luce_loss(values, beats(torch.zeros(1, 3))) == 0).all()


def test_labels_move_towards_the_model_and_stay_where_it_agrees():
    labels = torch.tensor([1.0, 0.0, 0.5])
    margins = torch.tensor([0.0, 2.0, -1.0], requires_grad=True)
    assert torch.equal(smoothed_labels(labels, margins, rate=0.0), labels)
    assert_close(smoothed_labels(labels, margins, rate=1.0), margins.detach().sigmoid())
    moved = smoothed_labels(labels, margins, rate=0.25)
    assert_close(moved, torch.tensor([0.875, 0.25 / (1 + math.exp(-2)), 0.375 + 0.25 / (1 + math.e)]))
    assert not moved.requires_grad
    assert_close(smoothed_labels(margins.detach().sigmoid(), margins, rate=0.25), margins.detach().sigmoid())
