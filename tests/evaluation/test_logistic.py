"""Newton's steps against optima that are known, and against the condition that every optimum meets."""

import math

import pytest
import torch

from lit_align.evaluation.logistic import fit_logistic, normal_quantile


def gradient(features, outcomes, weights, ridge, beta):
    beta = beta.clone().requires_grad_()
    eta = features @ beta
    loss = (weights * (torch.nn.functional.softplus(eta) - outcomes * eta)).sum() + ridge / 2 * beta.square().sum()
    return torch.autograd.grad(loss, beta)[0]


def test_the_gradient_is_zero_at_every_optimum():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(60, 3, generator=generator).double()
    outcomes, weights = torch.rand(5, 60, generator=generator).double(), torch.randint(0, 4, (5, 60), generator=generator).double()
    ridge = torch.tensor([0.0, 0.0, 0.5, 3.0, 0.0])
    for row, beta in enumerate(fit_logistic(features, outcomes, weights, ridge)):
        found = gradient(features, outcomes[row], weights[row], ridge[row], beta)
        assert beta.abs().min() > 1e-3
        assert found.abs().max() < 1e-6


def test_a_weight_is_a_repetition():
    features, outcomes = torch.tensor([[1.0, 0.0], [1.0, 2.0], [1.0, -1.0]]), torch.tensor([[1.0, 0.3, 0.4]])
    repeated = torch.tensor([0, 1, 1, 2, 2, 2])
    once = fit_logistic(features, outcomes, torch.tensor([[1.0, 2.0, 3.0]]), torch.zeros(1))
    again = fit_logistic(features[repeated], outcomes[:, repeated], torch.ones(1, 6), torch.zeros(1))
    torch.testing.assert_close(once, again, atol=1e-7, rtol=0)


def test_it_arrives_from_afar():
    """A plain Newton step overshoots here: the optimum is at a slope of some hundreds."""
    x = torch.tensor([-0.01, 0.0, 0.001, 0.011])
    outcomes = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    beta = fit_logistic(torch.stack([torch.ones(4), x], -1), outcomes, torch.ones(1, 4), torch.zeros(1))
    assert beta[0, 1] > 100
    features = torch.stack([torch.ones(4), x], -1).double()
    assert gradient(features, outcomes[0].double(), torch.ones(4), 0.0, beta[0]).abs().max() < 1e-7


def test_no_optimum_is_an_error_and_a_ridge_makes_one():
    rows, won = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0]])
    with pytest.raises(ValueError, match="Give a ridge"):
        fit_logistic(rows, won * 0.5 + 0.5, torch.ones(1, 2), torch.zeros(1))
    beta = fit_logistic(torch.ones(1, 1), torch.ones(1, 1), torch.ones(1, 1), torch.ones(1))[0, 0]
    assert float(beta) == pytest.approx(float(torch.sigmoid(-beta)))  # 1 - p = rho beta


def test_the_quantile_of_a_normal():
    assert normal_quantile(0.95) == pytest.approx(1.959963985)
    assert math.erf(normal_quantile(0.5) / math.sqrt(2)) == pytest.approx(0.5)
