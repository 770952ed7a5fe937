"""What advantages are divided by: per step, once, never less, or as told."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import (
    DAR,
    BatchMean,
    BatchStd,
    DARPolicyGradient,
    DARRegression,
    FixedScale,
    ReferenceStd,
    RunningMax,
    group_centred,
    leave_one_out,
)
from lit_align.types import UserError
from tests.algorithms.worlds import SAMPLING, TablePolicy, drawn_by, make_module

SCORES = torch.tensor([[0.0, 1.0, 2.0], [5.0, 5.0, 8.0], [1.0, -1.0, 0.0], [0.0, 0.0, 0.5]], dtype=torch.float64)
VALID = torch.ones_like(SCORES, dtype=torch.bool)
STEPS = torch.tensor([0, 0, 1, 1])
NOTHING = torch.zeros(())


def measure(scale, scores=SCORES, valid=VALID, previous=NOTHING, steps=STEPS, drift=NOTHING):
    return scale.measure(previous, scores, group_centred(scores, valid), valid, steps, drift)


def within(scores):
    """Root of the mean unbiased variance inside a row."""
    return scores.var(-1).mean().sqrt()


def test_every_optimizer_step_has_its_own_batch_std():
    advantages = SCORES - SCORES.mean(-1, keepdim=True)
    first, second = (advantages[rows].square().mean().sqrt() for rows in (slice(0, 2), slice(2, 4)))
    assert first > 1.2 * second
    assert_close(measure(BatchStd()), torch.stack([first, first, second, second]))
    assert_close(measure(BatchStd(), steps=torch.zeros(4, dtype=torch.long)), advantages.square().mean().sqrt().expand(4))


def test_batch_std_subtracts_the_mean_of_the_step():
    advantages = torch.tensor([[3.0], [5.0], [7.0], [7.0]])
    stds = BatchStd().measure(NOTHING, advantages, advantages, torch.ones(4, 1, dtype=torch.bool), STEPS, NOTHING)
    assert_close(stds, torch.tensor([1.0, 1.0, 1e-6, 1e-6]))


def test_batch_std_counts_valid_advantages_only():
    valid = VALID.clone()
    valid[0, 2] = valid[2, 0] = False
    advantages = group_centred(SCORES, valid)
    first = torch.cat([advantages[0, :2], advantages[1]])
    assert_close(measure(BatchStd(), valid=valid)[0], first.square().mean().sqrt())
    none = measure(BatchStd(), valid=torch.zeros_like(valid))
    assert torch.equal(none, torch.full_like(none, 1e-6))


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_weights_with_the_batch_std_ignore_the_unit_of_rewards(factor):
    prompts, responses = torch.tensor([0, 1]), torch.tensor([[0, 1, 2], [3, 1, 0]])
    module = make_module(now=SAMPLING)
    batch = drawn_by(module, prompts, responses)
    scaled = drawn_by(module, prompts, responses, scores=batch.scores * factor - 3)
    assert_close(module.prepare(scaled)[0].weights, module.prepare(batch)[0].weights)


def test_the_batch_std_reaches_the_weights_step_by_step():
    prompts, responses = torch.tensor([0, 1, 0, 1]), torch.tensor([[0, 1, 2], [3, 1, 0]]).repeat(2, 1)
    module = make_module(now=SAMPLING)
    scores = drawn_by(module, prompts, responses).scores
    scores[2:] *= 50
    weights = module.prepare(drawn_by(module, prompts, responses, scores=scores, optimizer_steps=STEPS))[0].weights
    assert_close(weights[:2], weights[2:])


def test_the_reference_std_is_measured_once():
    scale = measure(ReferenceStd())
    assert_close(scale, within(SCORES).expand(4))
    later = measure(ReferenceStd(), scores=SCORES * 9, previous=scale[-1], drift=torch.tensor(50.0))
    assert torch.equal(later, scale)


def test_the_reference_std_is_refused_where_the_policy_is_not_the_reference():
    module = make_module(now=SAMPLING, scale=ReferenceStd())
    with pytest.raises(UserError, match=r"log-probs differ by 0\.\d+ nats in the first rollout\. Start from the reference"):
        module.prepare(drawn_by(module, torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 3]])))
    with pytest.raises(UserError, match=r"log-probs differ by"):  # 0 on average
        module.prepare(drawn_by(module, torch.tensor([0]), torch.arange(5).unsqueeze(0)))
    with pytest.raises(UserError, match=r"differ by 0\.011 nats"):
        measure(ReferenceStd(), drift=torch.tensor(0.011))
    assert_close(measure(ReferenceStd(), drift=torch.tensor(0.009))[0], within(SCORES))


def test_the_reference_std_is_refused_where_nothing_was_told_apart():
    with pytest.raises(UserError, match=r"the spread of scores inside a prompt, and it is 0 in the first rollout.*RunningMax\(\)"):
        measure(ReferenceStd(), scores=torch.full_like(SCORES, 0.1))


def test_the_running_maximum_never_shrinks():
    scale = NOTHING
    seen = []
    for factor in (0.0, 0.5, 2.0, 1.0, 3.0, 0.0):
        scale = measure(RunningMax(), scores=SCORES * factor, previous=scale)[-1]
        seen.append(float(scale))
    unit = float(within(SCORES))
    assert seen == pytest.approx([1e-6, 0.5 * unit, 2 * unit, 2 * unit, 3 * unit, 3 * unit])


@pytest.mark.parametrize("scale", [ReferenceStd(), RunningMax()])
def test_spread_inside_a_prompt_ignores_prompts_with_one_valid_score(scale):
    valid = VALID.clone()
    valid[1, :2] = valid[3] = False
    assert_close(measure(scale, valid=valid)[0], within(SCORES[[0, 2]]))


def test_a_fixed_scale_is_what_was_given():
    assert_close(measure(FixedScale(0.25)), torch.full((4,), 0.25, dtype=torch.float64))
    module = make_module(scale=FixedScale(0.25))
    batch = drawn_by(module, torch.tensor([0]), torch.tensor([[0, 1]]))
    prepared, diagnostics = module.prepare(batch)
    assert_close(prepared.advantages, 4 * group_centred(batch.scores))
    assert float(diagnostics["kl/price"]) == pytest.approx(0.005 * 0.25)


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_fixed_scale_divides_by_something(value):
    with pytest.raises(UserError, match=f"divides advantages by a positive number, got {value}"):
        FixedScale(value)


def test_the_batch_mean_is_that_of_valid_scores():
    valid = VALID.clone()
    valid[1] = False
    advantages = BatchMean()(SCORES, valid)
    assert_close(advantages, (SCORES - SCORES[[0, 2, 3]].mean()).where(valid, 0.0))


@pytest.mark.parametrize("k", [2, 3, 8])
def test_the_batch_std_makes_baselines_coincide_and_depends_on_k(k):
    """K changes the temperature: the slope of a standardised advantage in the reward is sqrt((K - 1)/K) / sigma_within."""
    scores = torch.randn(64, k, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    valid, steps = torch.ones_like(scores, dtype=torch.bool), torch.zeros(64, dtype=torch.long)
    mean, others = group_centred(scores), leave_one_out(scores)
    by_mean, by_others = (BatchStd().measure(NOTHING, scores, a, valid, steps, NOTHING) for a in (mean, others))
    assert_close(mean / by_mean.unsqueeze(-1), others / by_others.unsqueeze(-1))
    assert_close(by_mean * (k / (k - 1)) ** 0.5, ReferenceStd().measure(NOTHING, scores, mean, valid, steps, NOTHING))


def of_version(module, version, factor):
    batch = drawn_by(module, torch.tensor([0, 1]), torch.tensor([[0, 1, 2], [3, 1, 0]]))
    return replace(batch, scores=batch.scores * factor, annotator_version=version)


@pytest.mark.parametrize("algorithm", [DAR, DARPolicyGradient, DARRegression])
def test_the_running_maximum_starts_anew_with_another_version_of_the_annotator(algorithm):
    module = algorithm(TablePolicy(SAMPLING), scale=RunningMax())
    seen = []
    for version, factor in ((0, 1.0), (0, 0.5), (2, 0.1), (2, 0.05), (3, 4.0)):
        module.prepare(of_version(module, version, factor))
        seen.append(float(module.measured_scale))
        assert int(module.measured_version) == version
    assert seen == pytest.approx([seen[0], seen[0], 0.1 * seen[0], 0.1 * seen[0], 4 * seen[0]])


def test_the_version_is_in_the_checkpoint():
    module, resumed = make_module(scale=RunningMax()), make_module(scale=RunningMax())
    module.prepare(of_version(module, 2, 1.0))
    resumed.load_state_dict(module.state_dict())
    resumed.prepare(of_version(resumed, 2, 0.1))
    assert float(resumed.measured_scale) == float(module.measured_scale)


def test_the_reference_std_is_refused_when_the_annotator_has_learnt():
    module = make_module(scale=ReferenceStd())
    module.prepare(of_version(module, 1, 1.0))  # whatever it had learnt before the first rollout
    module.prepare(of_version(module, 1, 1.0))
    with pytest.raises(UserError, match=r"in scores of version 1 .* in version 2 its scores have another unit. Use RunningMax\(\)"):
        module.prepare(of_version(module, 2, 1.0))


def test_a_fixed_scale_and_that_of_the_batch_mind_no_version():
    for scale in (FixedScale(2.0), BatchStd()):
        module = make_module(scale=scale)
        first, later = (module.prepare(of_version(module, version, 1.0))[0].weights for version in (0, 1))
        assert torch.equal(first, later)
