"""Losses of pairs: their values, slopes and optima as the papers have them, and the links of f-DPO against their divergences."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import (
    alpha_divergence,
    dpo_loss,
    forward_kl,
    ipo_loss,
    jensen_shannon,
    kto_loss,
    log_odds,
    reverse_kl,
    simpo_loss,
    slic_loss,
)

LOSSES = [partial(dpo_loss, beta=0.7), partial(ipo_loss, beta=0.7), partial(slic_loss, beta=0.7), partial(simpo_loss, beta=0.7, gamma=0.4)]
LINKS = [reverse_kl, forward_kl, jensen_shannon, partial(alpha_divergence, alpha=0.3)]
losses = pytest.mark.parametrize("loss", LOSSES, ids=["dpo", "ipo", "slic", "simpo"])
links = pytest.mark.parametrize("link", LINKS, ids=["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def slope(function, at):
    """The derivative at every entry of ``at``."""
    x = at.clone().requires_grad_()
    return torch.autograd.grad(function(x).sum(), x)[0]


# Hard labels


@pytest.mark.parametrize("beta", [0.1, 0.5, 2.0])
def test_at_a_margin_of_0_the_losses_and_slopes_are_the_papers(beta):
    zero = double(0.0)
    for loss, value, gradient in ((dpo_loss, math.log(2), -beta / 2), (ipo_loss, 1 / (4 * beta**2), -1 / beta), (slic_loss, 1.0, -beta)):
        assert loss(zero, beta=beta).item() == pytest.approx(value, abs=1e-12)
        assert slope(partial(loss, beta=beta), zero).item() == pytest.approx(gradient, abs=1e-12)


def test_the_worked_example_at_the_published_betas():
    four = double(4.0)
    assert dpo_loss(four, beta=0.1).item() == pytest.approx(0.513015, abs=1e-6)
    assert ipo_loss(four, beta=1.0).item() == pytest.approx(12.25)
    assert slic_loss(four, beta=0.002).item() == pytest.approx(0.992)


def test_dpo_is_never_satisfied():
    assert (slope(partial(dpo_loss, beta=0.5), double(-50.0, 0.0, 1.0, 50.0)) < 0).all()


def test_ipo_pulls_back_what_has_gone_past_its_target():
    target = 1 / (2 * 0.4)
    margins = double(target - 1, target, target + 1)
    assert_close(ipo_loss(margins, beta=0.4), double(1.0, 0.0, 1.0))
    assert_close(slope(partial(ipo_loss, beta=0.4), margins), double(-2.0, 0.0, 2.0))


def test_slic_stops_at_its_target():
    margins = double(-1.0, 3.9, 4.1, 100.0)
    assert_close(slic_loss(margins, beta=0.25), double(1.25, 0.025, 0.0, 0.0))
    assert slope(partial(slic_loss, beta=0.25), margins).tolist() == [-0.25, -0.25, 0.0, 0.0]


def test_simpo_is_dpo_behind_a_margin():
    margins = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert_close(simpo_loss(margins, beta=2.0, gamma=0.0), dpo_loss(margins, beta=2.0))
    assert_close(simpo_loss(margins, beta=2.0, gamma=1.6), dpo_loss(margins - 0.8, beta=2.0))


# Soft labels


@losses
@pytest.mark.parametrize("label", [0.0, 0.3, 0.5, 1.0])
def test_turning_pair_and_label_round_changes_nothing(loss, label):
    margins = torch.linspace(-3, 3, 12, dtype=torch.float64)
    assert_close(loss(margins, labels=label), loss(-margins, labels=1 - label))
    labels = torch.full_like(margins, label)
    assert_close(loss(margins, labels=labels), loss(margins, labels=label))


@losses
def test_a_soft_label_is_the_expectation_over_drawn_ones(loss):
    margins = torch.linspace(-3, 3, 12, dtype=torch.float64)
    assert_close(loss(margins, labels=0.8), 0.8 * loss(margins, labels=1) + 0.2 * loss(margins, labels=0.0))
    assert_close(loss(margins, labels=0.0), loss(-margins))
    assert not torch.allclose(loss(margins, labels=0.8), loss(margins))


@pytest.mark.parametrize("p", [0.1, 0.5, 0.7, 0.95])
@pytest.mark.parametrize("beta", [0.2, 1.0])
def test_optima_of_soft_labels(p, beta):
    for loss, best in ((dpo_loss, math.log(p / (1 - p)) / beta), (ipo_loss, (2 * p - 1) / (2 * beta))):
        function = partial(loss, beta=beta, labels=p)
        assert slope(function, double(best)).item() == pytest.approx(0, abs=1e-12)
        assert slope(function, double(best - 0.1)) < 0 < slope(function, double(best + 0.1))


@pytest.mark.parametrize("p", [0.05, 0.4, 0.55, 0.99])
def test_a_soft_label_tells_slic_who_wins_and_not_how_surely(p):
    grid = torch.linspace(-10, 10, 2001, dtype=torch.float64)
    best = grid[slic_loss(grid, beta=0.5, labels=p).argmin()].item()
    assert best == pytest.approx(math.copysign(1 / 0.5, 2 * p - 1))


# Single responses


def test_kto_values_what_is_above_the_reference_point():
    good, ratios = torch.tensor([True, False]), double(3.0, 3.0)
    value = 1 / (1 + math.exp(-0.5 * (3.0 - 1.0)))
    found = kto_loss(ratios, beta=0.5, reference_point=1.0, good=good)
    assert_close(found, double(1 - value, value))
    assert_close(kto_loss(ratios + 7, beta=0.5, reference_point=8.0, good=good), found)
    assert slope(lambda x: kto_loss(x, beta=0.5, reference_point=1.0, good=good), ratios).sign().tolist() == [-1, 1]


def test_kto_is_steepest_at_the_reference_point():
    ratios = torch.linspace(-4, 8, 121, dtype=torch.float64)
    steepness = slope(lambda x: kto_loss(x, beta=1.0, reference_point=2.0, good=torch.ones(121, dtype=torch.bool)), ratios).abs()
    assert ratios[steepness.argmax()].item() == pytest.approx(2.0)
    assert steepness.max().item() == pytest.approx(0.25)


def test_log_odds_of_a_probability():
    p = double(0.01, 0.3, 0.5, 0.9)
    assert_close(log_odds(p.log()), (p / (1 - p)).log())


def test_log_odds_of_certainty_are_large_and_finite():
    certain = torch.tensor([0.0, -1e-9, -1e4])
    assert log_odds(certain)[0] == log_odds(certain)[1] > 13
    assert log_odds(certain)[2] == pytest.approx(-1e4)
    assert slope(log_odds, certain).isfinite().all()


# Links


def test_links_are_derivatives_of_their_divergences():
    """f of f-DPO's table 1, by automatic differentiation: KL(pi || ref) = E_ref[u log u], and so on."""

    def alpha(u, a=0.3):
        return (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1))

    def jensen(u):
        return u * u.log() - (u + 1) * ((u + 1) / 2).log()

    log_ratios = torch.linspace(-3, 3, 13, dtype=torch.float64)
    for link, f in zip(LINKS, (lambda u: u * u.log(), lambda u: -u.log(), jensen, alpha), strict=True):
        derivative, at_one = slope(f, log_ratios.exp()), slope(f, double(1.0))
        values = link(log_ratios)
        assert_close(values - link(double(0.0)), derivative - at_one)


def test_all_links_but_jensen_shannon_pull_alike_at_the_reference_and_it_half_as_hard():
    assert [slope(link, double(0.0)).item() for link in LINKS] == [1.0, 1.0, 0.5, 1.0]
    assert [link(double(0.0)).item() for link in LINKS] == [0.0, 0.0, 0.0, 0.0]


@links
def test_links_rise(link):
    assert (link(torch.linspace(-20, 20, 100, dtype=torch.float64)).diff() > 0).all()


def test_alpha_goes_from_reverse_to_forward_kl():
    log_ratios = torch.linspace(-3, 3, 13, dtype=torch.float64)
    assert_close(alpha_divergence(log_ratios, alpha=1e-9), reverse_kl(log_ratios), atol=1e-6, rtol=0)
    assert_close(alpha_divergence(log_ratios, alpha=1 - 1e-9), forward_kl(log_ratios), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 1.5])
def test_the_ends_of_alpha_are_other_links(alpha):
    with pytest.raises(ValueError, match=r"between 0 \(reverse_kl\) and 1 \(forward_kl\)"):
        alpha_divergence(torch.zeros(1), alpha=alpha)


# Numbers


@losses
@pytest.mark.parametrize("label", [1.0, 0.8])
def test_margins_of_any_size_are_finite(loss, label):
    margins = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    function = partial(loss, labels=torch.full((5,), label))
    assert function(margins).isfinite().all()
    assert slope(function, margins).isfinite().all()


@links
def test_links_of_any_log_ratio_are_finite_and_so_is_the_loss_of_their_margin(link):
    log_ratios = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4])
    for function in (link, lambda x: dpo_loss(link(x) - link(x.flip(0)), beta=0.1, labels=torch.full((5,), 0.9))):
        assert function(log_ratios).isfinite().all()
        assert slope(function, log_ratios).isfinite().all()


def test_kto_of_any_log_ratio_is_finite():
    ratios, good = torch.tensor([-1e4, 1e4, -1e4, 1e4]), torch.tensor([True, True, False, False])
    assert kto_loss(ratios, beta=0.5, reference_point=0.0, good=good).tolist() == [1.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize(
    "function", [*LOSSES, *LINKS, log_odds, lambda x: kto_loss(x, beta=0.5, reference_point=0.0, good=torch.ones(1, dtype=torch.bool))]
)
def test_float64_stays_and_bfloat16_is_computed_in_float32(function):
    assert function(double(-0.3)).dtype == torch.float64
    narrow = torch.tensor([-0.3], dtype=torch.bfloat16)
    assert torch.equal(function(narrow), function(narrow.float()))
