"""DAR as least squares: the theorem in one round at any K, the tilted reference over rounds, RLOO at the start."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import DARRegression, FixedScale, ReferenceStd
from lit_align.types import UserError
from tests.algorithms.descent import minimised
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
    normalised,
)


def make(now=REFERENCE, **options):
    module = DARRegression(TablePolicy(REFERENCE), **({"scale": FixedScale()} | options))
    module.policy.become(now)
    return module


def theorem(now, alpha, beta, rewards=REWARDS):
    """What maximises E[r] - alpha KL(pi || pi_ref) - beta KL(pi || pi_t)."""
    return normalised((alpha * REFERENCE.log() + beta * now.log() + rewards) / (alpha + beta))


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(0.4, 0.6), (0.0, 0.8), (0.7, 0.0)])
def test_a_fitted_round_is_theorem_4_1_at_full_strength(alpha, beta, k):
    module = make(SAMPLING, alpha=alpha, beta=beta, scale=FixedScale(2.0))
    groups = Groups.of(module.policy, k)
    assert_close(minimised(module, groups), theorem(SAMPLING, alpha, beta, REWARDS / 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [2, 3])
def test_at_the_theorem_every_group_is_content(k):
    """Not in expectation only: the loss of each is 0, so its gradient has no noise."""
    module = make(SAMPLING, alpha=0.4, beta=0.6)
    groups = Groups.of(module.policy, k)
    _, _, batch = expected_loss(module, groups)
    module.policy.become(theorem(SAMPLING, 0.4, 0.6))
    losses, _ = module.objective(batch, module.policy(batch))
    assert losses.abs().max() < 1e-20
    module.policy.become(LATER)
    assert module.objective(batch, module.policy(batch))[0].max() > 0.1


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_rounds_end_at_the_tilted_reference(start):
    module = make(start, alpha=0.6, beta=0.2)
    for _ in range(8):
        module.policy.become(minimised(module, Groups.of(module.policy, 2)))
    assert_close(module.policy.probabilities, normalised(REFERENCE.log() + REWARDS / 0.6), atol=1e-4, rtol=0)


def test_the_loss_of_a_prompt_is_half_the_sample_variance_of_what_is_left():
    module = make(SAMPLING, alpha=0.4, beta=0.6)
    prompts, responses = torch.tensor([0, 1]), torch.tensor([[0, 3, 4], [1, 2, 3]])
    batch, _ = module.prepare(drawn_by(module, prompts, responses))
    module.policy.become(LATER)
    losses, _ = module.objective(batch, module.policy(batch))
    left = (LATER.log() - theorem(SAMPLING, 0.4, 0.6).log())[prompts.unsqueeze(-1), responses]
    assert_close(losses.mean(-1).detach(), left.var(-1, correction=1) / 2)


def test_the_price_is_that_of_the_reference_for_the_whole_run():
    module = make(alpha=0.4, beta=0.6, scale=ReferenceStd())
    prices = []
    for now in (REFERENCE, SAMPLING):
        module.policy.become(now)
        groups = Groups.of(module.policy, 2)
        prices.append(float(module.prepare(drawn_by(module, groups.prompts, groups.responses))[1]["kl/price"]))
    assert prices == pytest.approx([0.4 * float(module.measured_scale)] * 2, rel=1e-6)
    assert prices[0] > 0.1


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (-0.1, 0.5), (0.5, -0.1)])
def test_prices_that_bound_nothing_are_refused(alpha, beta):
    with pytest.raises(UserError, match=rf"not both 0, got {alpha} and {beta}"):
        make(alpha=alpha, beta=beta)
