"""KTO against an enumeration of its equation 8; its reference point against the exact divergence."""

import math

import pytest
import torch

from lit_align.algorithms import KTO
from tests.algorithms.published import REFERENCE_SAID, SAMPLING_SAID, assert_gradients_agree, members, rollout_at_sampling, said
from tests.algorithms.worlds import REFERENCE, REWARDS, SAMPLING, Groups, TablePolicy, drawn_by

SETTING = {"beta": 0.6, "threshold": 0.35, "good_weight": 1.3, "bad_weight": 0.7}
EVERYTHING = Groups.of(TablePolicy(SAMPLING), 1).replicated(20)  # each response as often as it is drawn in 20 tries, exactly


def test_the_reference_point_is_the_divergence_of_the_policy_that_sampled():
    module = KTO(TablePolicy(REFERENCE), **SETTING)
    module.policy.become(SAMPLING)
    batch, diagnostics = module.prepare(drawn_by(module, EVERYTHING.prompts, EVERYTHING.responses))
    exact = (SAMPLING * (SAMPLING / REFERENCE).log()).sum(-1).mean()
    assert float(diagnostics["kl/reference_point"]) == pytest.approx(float(exact), abs=1e-12)
    torch.testing.assert_close(batch.targets - batch.reference_response_logps, exact.expand_as(batch.targets))


def test_the_published_loss_enumerated():
    module = KTO(TablePolicy(REFERENCE), **SETTING)
    batch = rollout_at_sampling(module, EVERYTHING)
    point = float((SAMPLING * (SAMPLING / REFERENCE).log()).sum(-1).mean())
    logs, total = said(module.policy), torch.zeros((), dtype=torch.float64)
    for chance, p, (r,) in members(EVERYTHING):
        ratio = sum(logs[p][r]) - sum(REFERENCE_SAID[p][r])
        good = REWARDS[p, r] > 0.35
        value = 1 / (1 + (-0.6 * (ratio - point) if good else -0.6 * (point - ratio)).exp())
        total += chance / 2 * (1.3 if good else 0.7) * (1 - value)
    assert_gradients_agree(module, EVERYTHING, batch, total)


def test_the_reference_point_is_never_below_0():
    """A handful of samples may all be likelier under the reference."""
    module = KTO(TablePolicy(REFERENCE), **SETTING)
    module.policy.become(SAMPLING)
    unlikely = [(p, r) for p in range(2) for r in range(5) if math.fsum(SAMPLING_SAID[p][r]) < math.fsum(REFERENCE_SAID[p][r])]
    prompts, responses = torch.tensor(unlikely).split(1, dim=1)
    batch, diagnostics = module.prepare(drawn_by(module, prompts.squeeze(1), responses))
    assert diagnostics["kl/reference_point"] == 0
    assert torch.equal(batch.targets, batch.reference_response_logps)


def test_responses_that_are_not_valid_do_not_move_the_reference_point():
    module = KTO(TablePolicy(REFERENCE), **SETTING)
    module.policy.become(SAMPLING)
    prompts, responses = torch.tensor([0, 1]), torch.tensor([[1, 4], [4, 0]])
    valid = torch.tensor([[True, False], [True, True]])
    _, diagnostics = module.prepare(drawn_by(module, prompts, responses, valid=valid))
    ratios = (SAMPLING / REFERENCE).log()
    assert float(diagnostics["kl/reference_point"]) == pytest.approx(float(ratios[0, 1] + ratios[1, 4] + ratios[1, 0]) / 3)
