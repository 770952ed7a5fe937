"""The direct gradient of DAR's objective: exact at every step of a rollout, and so is where it ends."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import DARPolicyGradient, FixedScale
from lit_align.types import UserError
from tests.algorithms.descent import natural_step, settled
from tests.algorithms.worlds import (
    LATER,
    REFERENCE,
    REWARDS,
    SAMPLING,
    STARTS,
    Groups,
    TablePolicy,
    drawn_by,
    expected_loss,
    gradient,
    normalised,
    value,
)


def make(now=REFERENCE, **options):
    module = DARPolicyGradient(TablePolicy(REFERENCE), **({"scale": FixedScale(), "max_ratio": math.inf} | options))
    module.policy.become(now)
    return module


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (0.0, 0.8), (0.7, 0.0)])
@pytest.mark.parametrize("at", [SAMPLING, LATER], ids=["first step", "later step"])
def test_the_expected_gradient_is_that_of_the_objective(alpha, beta, k, at):
    module = make(SAMPLING, alpha=alpha, beta=beta, scale=FixedScale(2.0))
    groups = Groups.of(module.policy, k)
    _, _, batch = expected_loss(module, groups)
    module.policy.become(at)
    exact = -value(module.policy, alpha, REFERENCE, REWARDS / 2) - value(module.policy, beta, SAMPLING, torch.zeros_like(REWARDS))
    expected = gradient(module, exact)
    assert expected.abs().max() > 1e-2
    assert_close(gradient(module, expected_loss(module, groups, batch)[0]), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (0.7, 0.0)])
def test_a_fitted_round_is_theorem_4_1(alpha, beta):
    module = make(SAMPLING, alpha=alpha, beta=beta)
    groups = Groups.of(module.policy, 2)
    _, _, batch = expected_loss(module, groups)
    for _ in range(20):
        natural_step(module, gradient(module, expected_loss(module, groups, batch)[0]), 0.5 / (alpha + beta))
    best = normalised((alpha * REFERENCE.log() + beta * SAMPLING.log() + REWARDS) / (alpha + beta))
    assert_close(module.policy.probabilities, best, atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_rounds_end_at_the_tilted_reference(start):
    module = make(start, alpha=0.5, beta=0.3)
    assert_close(settled(module, 2, rate=1.0, steps=30), normalised(REFERENCE.log() + REWARDS / 0.5), atol=1e-7, rtol=0)


def test_importance_weights_have_a_ceiling():
    """Of what became 2 and 1/2 times as likely, a ceiling of 1.5 holds the first."""
    prompts, responses = torch.tensor([0]), torch.tensor([[1, 4]])
    slopes = []
    for ceiling in (math.inf, 1.5):
        module = make(SAMPLING, alpha=0.4, beta=0.6, max_ratio=ceiling)
        batch, _ = module.prepare(drawn_by(module, prompts, responses))
        output = module.policy(batch)
        moved = output.token_logps.detach() + torch.tensor([[[0.0, math.log(2)], [0.0, -math.log(2)]]], dtype=torch.float64)
        moved.requires_grad_()
        losses, diagnostics = module.objective(batch, output.__class__(token_logps=moved))
        slopes.append(torch.autograd.grad(losses.sum(), moved)[0][0, :, 0])
        assert diagnostics["ratio/clipped_fraction"].tolist() == [[float(ceiling < 2), 0.0]]
    assert_close(slopes[1] / slopes[0], torch.tensor([0.75, 1.0], dtype=torch.float64))


@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.5), (0.5, -0.1)])
def test_negative_prices_are_refused(alpha, beta):
    with pytest.raises(UserError, match=rf"got alpha = {alpha} and beta = {beta}"):
        make(alpha=alpha, beta=beta)
