"""RLOO ascends the regularised reward, exactly in expectation, and ends where it is largest."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import RLOO
from lit_align.types import Needs
from tests.algorithms.descent import pull, settled
from tests.algorithms.worlds import LATER, REFERENCE, REWARDS, STARTS, TablePolicy, drawn_by, gradient, normalised, value


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_expected_gradient_is_that_of_the_regularised_reward(k, beta):
    module = RLOO(TablePolicy(REFERENCE), beta=beta)
    module.policy.become(LATER)
    exact = gradient(module, -value(module.policy, beta))
    assert exact.abs().max() > 1e-2
    assert_close(pull(module, k), exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("beta", [0.3, 1.0])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_it_ends_at_the_tilted_reference(start, beta):
    module = RLOO(TablePolicy(REFERENCE), beta=beta)
    module.policy.become(start)
    assert_close(settled(module, 2, rate=0.5 / beta, steps=30), normalised(REFERENCE.log() + REWARDS / beta), atol=1e-7, rtol=0)


def test_the_advantage_is_the_reward_minus_its_siblings_mean():
    """By hand, of three responses: rewards 1, .5, 0 less half the log-ratios log 2, 0, log 4."""
    module = RLOO(TablePolicy(REFERENCE), beta=0.5)
    ratios = torch.tensor([[0.0, 2.0, 1.0, 4.0, 0.0]], dtype=torch.float64).log()
    batch = drawn_by(module, torch.tensor([0]), torch.tensor([[1, 2, 3]]), scores=torch.tensor([[1.0, 0.5, 0.0]]))
    shifted = batch.reference_logps.clone()
    shifted[0, :, 0] -= ratios[0, 1:4]
    prepared, _ = module.prepare(replace(batch, reference_logps=shifted))
    rewards = [1 - 0.5 * math.log(2), 0.5, -0.5 * math.log(4)]
    expected = [rewards[k] - (sum(rewards) - rewards[k]) / 2 for k in range(3)]
    assert prepared.advantages.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_without_a_price_no_reference_is_loaded():
    assert RLOO(TablePolicy(REFERENCE), beta=0.0).needs == Needs(on_policy=True, responses=2, sampled=True)
    assert RLOO(TablePolicy(REFERENCE)).needs.reference
