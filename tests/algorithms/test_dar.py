"""What DAR makes of a rollout, and what it refuses."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import (
    BatchMean,
    BatchStd,
    CentredWeights,
    ClippedWeights,
    FixedScale,
    GroupWeights,
    KLTarget,
    ReferenceStd,
    RunningMax,
    group_centred,
    leave_one_out,
)
from lit_align.functional import response_logps
from lit_align.types import Needs, UserError
from tests.algorithms.worlds import SAMPLING, drawn_by, make_module

PROMPTS = torch.tensor([0, 1, 1, 0])
RESPONSES = torch.tensor([[0, 1, 4], [2, 2, 0], [3, 1, 0], [4, 3, 1]])


def prepared(module, prompts=PROMPTS, responses=RESPONSES, **options):
    return module.prepare(drawn_by(module, prompts, responses, **options))


@pytest.mark.parametrize(
    ("options", "needs"),
    [
        ({}, Needs(reference=True, responses=2, sampled=True)),
        ({"baseline": leave_one_out, "scale": FixedScale()}, Needs(reference=True, responses=2, sampled=True)),
        ({"baseline": BatchMean()}, Needs(reference=True, responses=1, sampled=True)),
        ({"baseline": BatchMean(), "weighting": GroupWeights()}, Needs(reference=True, responses=2, sampled=True)),
        ({"baseline": BatchMean(), "weighting": CentredWeights()}, Needs(reference=True, on_policy=True, responses=2, sampled=True)),
        ({"baseline": BatchMean(), "scale": ReferenceStd()}, Needs(reference=True, responses=2, sampled=True)),
        ({"baseline": BatchMean(), "scale": RunningMax()}, Needs(reference=True, responses=2, sampled=True)),
    ],
)
def test_needs_are_those_of_the_parts(options, needs):
    assert make_module(**options).needs == needs


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (-0.1, 0.5), (0.5, -0.1)])
def test_prices_that_bound_nothing_are_refused(alpha, beta):
    with pytest.raises(UserError, match=rf"must be positive and neither negative, got alpha = {alpha} and beta = {beta}"):
        make_module(alpha=alpha, beta=beta)


def test_weights_are_the_published_formula():
    module = make_module(now=SAMPLING, alpha=0.02, beta=0.18)
    batch, diagnostics = prepared(module)
    advantages = batch.scores - batch.scores.mean(-1, keepdim=True)
    std = advantages.square().mean().sqrt()
    divergence = batch.sampling_response_logps - batch.reference_response_logps
    assert divergence.abs().max() > 0.5
    expected = (advantages / std / 0.2 - 0.1 * divergence).exp().clamp(max=20.0)
    assert_close(batch.weights, expected)
    assert_close(batch.advantages, advantages / std)
    assert not batch.weights.requires_grad
    assert (expected == 20).any()
    assert torch.equal(diagnostics["weights/clipped_fraction"], (expected == 20).float())


def test_every_weight_above_the_ceiling_is_reported_as_clipped():
    free, _ = prepared(make_module(now=SAMPLING, alpha=0.5, beta=0.5, weighting=ClippedWeights(math.inf)))
    ceiling = 0.9 * float(free.weights.max())  # just one of them
    batch, diagnostics = prepared(make_module(now=SAMPLING, alpha=0.5, beta=0.5, weighting=ClippedWeights(ceiling)))
    assert torch.equal(diagnostics["weights/clipped_fraction"], (free.weights > ceiling).float())
    assert diagnostics["weights/clipped_fraction"].sum() == 1
    assert_close(batch.weights, free.weights.clamp(max=ceiling))


@pytest.mark.parametrize("target", [None, KLTarget(nats=0.05, rate=0.5)])
@pytest.mark.parametrize("scale", [BatchStd(), RunningMax(), FixedScale(3.0)])
def test_diagnostics_add_up(scale, target):
    module = make_module(now=SAMPLING, alpha=0.2, beta=0.3, weighting=ClippedWeights(math.inf), scale=scale, kl_target=target)
    batch, diagnostics = prepared(module)
    assert_close(diagnostics["weights/reference_part"] + diagnostics["weights/advantage_part"], batch.weights.log())
    factor = float(module.price_factor)
    assert (factor == 1.0) == (target is None)
    assert float(diagnostics["kl/price"]) == pytest.approx(0.2 * factor * float(module.measured_scale), rel=1e-6)


@pytest.mark.parametrize("weighting", [ClippedWeights(), GroupWeights(), CentredWeights()])
def test_a_lone_valid_response_is_not_trained_on(weighting):
    valid = torch.tensor([[True, True, True], [False, True, False], [False, False, False], [True, False, True]])
    module = make_module(weighting=weighting)
    batch, diagnostics = prepared(module, valid=valid)
    expected = valid.clone()
    expected[1] = False  # nothing to compare it with
    assert torch.equal(batch.valid, expected)
    assert all(value.isfinite().all() for value in (*diagnostics.values(), batch.weights))


def test_a_batch_baseline_compares_a_lone_valid_response_with_the_batch():
    valid = torch.tensor([[True, True, True], [False, True, False], [False, False, False], [True, False, True]])
    batch, _ = prepared(make_module(baseline=BatchMean(), scale=FixedScale()), valid=valid)
    assert torch.equal(batch.valid, valid)
    mean = batch.scores[valid].mean()
    assert_close(batch.weights[1, 1], ((batch.scores[1, 1] - mean) / 0.05).exp().clamp(max=20.0))


@pytest.mark.parametrize("baseline", [group_centred, leave_one_out, BatchMean()])
@pytest.mark.parametrize("weighting", [ClippedWeights(), GroupWeights(), CentredWeights()])
@pytest.mark.parametrize("scale", [BatchStd(), ReferenceStd(), RunningMax()])
def test_what_was_not_scored_has_no_say(baseline, weighting, scale):
    valid = torch.tensor([[True, True, False], [True, False, True], [True, True, True], [False, False, False]])
    said = []
    for rubbish in (0.0, 1e6, math.nan):
        module = make_module(baseline=baseline, weighting=weighting, scale=scale)
        scores = drawn_by(module, PROMPTS, RESPONSES).scores.where(valid, rubbish)
        batch, _ = prepared(module, scores=scores, valid=valid)
        said.append(batch.weights[valid])
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[0], said[2])


def test_groups_are_those_of_valid_responses():
    valid = torch.tensor([[True, True, False], [True, False, True], [True, True, True], [False, False, False]])
    weights = prepared(make_module(now=SAMPLING, weighting=GroupWeights()), valid=valid)[0].weights
    assert_close(weights.sum(-1), valid.sum(-1).double())
    assert (weights[~valid] == 0).all()
    weights = prepared(make_module(now=SAMPLING, weighting=CentredWeights()), valid=valid)[0].weights
    assert_close(weights.sum(-1), torch.zeros(4, dtype=torch.float64), atol=1e-9, rtol=0)
    assert (weights[~valid] == 0).all()
    assert weights.abs().max() > 1


def test_one_response_per_prompt_is_weighed_against_the_batch():
    module = make_module(baseline=BatchMean(), alpha=0.5, beta=0.5)
    batch, _ = prepared(module, responses=RESPONSES[:, :1])
    centred = batch.scores - batch.scores.mean()
    assert batch.valid.all()
    assert_close(batch.weights, (centred / centred.square().mean().sqrt()).exp())


def test_the_derivative_of_the_loss_is_minus_the_weight_over_the_number_of_responses():
    module = make_module(now=SAMPLING)
    batch, _ = prepared(module)
    output = module.policy(batch)
    output = replace(output, token_logps=output.token_logps.detach().requires_grad_())
    losses, _ = module.objective(batch, output)
    (slope,) = torch.autograd.grad(losses.sum() / 12, output.token_logps)
    assert_close(slope, (-batch.weights / 12).unsqueeze(-1).expand_as(slope).where(batch.loss_mask, 0.0))


def test_the_training_step_is_the_mean_over_valid_responses():
    module = make_module(now=SAMPLING)
    valid = torch.ones_like(RESPONSES, dtype=torch.bool)
    valid[0, 1] = False
    batch, _ = prepared(module, valid=valid, response_normaliser=torch.tensor(11.0))
    step = module.training_step(batch, 0)
    logps = response_logps(module.policy(batch).token_logps, batch.loss_mask)
    assert_close(step["loss"], -(batch.weights * logps)[valid].mean())
    assert_close(step["logps"], logps.detach().where(valid, 0.0))  # what is not trained on is not read
    assert step["loss"].requires_grad
    assert not step["losses"].requires_grad


def test_neither_order_nor_micro_batches_change_the_loss():
    whole = float(make_and_train())
    assert float(make_and_train(order=[3, 0, 2, 1])) == pytest.approx(whole, rel=1e-12)
    assert float(make_and_train(siblings=[2, 0, 1])) == pytest.approx(whole, rel=1e-12)
    assert float(make_and_train(micro=1)) == pytest.approx(whole, rel=1e-12)


def make_and_train(order=(0, 1, 2, 3), siblings=(0, 1, 2), micro=4):
    """The loss of an optimizer step, summed over its micro-batches."""
    module = make_module(now=SAMPLING)
    batch, _ = prepared(module, PROMPTS[list(order)], RESPONSES[list(order)][:, list(siblings)])
    return sum(module.training_step(batch.rows(rows), 0)["loss"].detach() for rows in torch.arange(4).split(micro))


# The target


@pytest.mark.parametrize(("nats", "moved"), [(1e-3, math.exp(0.1)), (1e3, math.exp(-0.0999)), (None, 1.0)])
def test_a_divergence_above_its_target_raises_the_price_and_one_below_lowers_it(nats, moved):
    free = make_module(now=SAMPLING, alpha=0.2, beta=0.3)
    batch = drawn_by(free, PROMPTS, RESPONSES)
    divergence = float((batch.sampling_response_logps - batch.reference_response_logps).mean())
    assert divergence > 0.01
    module = make_module(now=SAMPLING, alpha=0.2, beta=0.3, kl_target=KLTarget(divergence if nats is None else nats))
    module.prepare(batch)
    assert float(module.price_factor) == pytest.approx(moved, rel=1e-3)
    dearer = make_module(now=SAMPLING, alpha=0.2 * float(module.price_factor), beta=0.3 * float(module.price_factor))
    module.kl_target = None  # the factor stays where it is
    assert_close(module.prepare(batch)[0].weights, dearer.prepare(batch)[0].weights)


def test_the_target_moves_by_the_distance_and_never_by_more_than_its_rate():
    target = KLTarget(nats=2.0, rate=0.3)
    one = torch.ones(())
    for kl, exponent in [(2.0, 0.0), (3.0, 0.15), (1.0, -0.15), (0.0, -0.3), (-5.0, -0.3), (100.0, 0.3)]:
        assert float(target.moved(one * 1.7, one * kl)) == pytest.approx(1.7 * math.exp(exponent), rel=1e-6)


@pytest.mark.parametrize(("nats", "rate"), [(0.0, 0.1), (1.0, 0.0), (-1.0, 0.1)])
def test_a_target_without_a_direction_is_refused(nats, rate):
    with pytest.raises(UserError, match=f"got nats = {nats} and rate = {rate}"):
        KLTarget(nats, rate)


@pytest.mark.parametrize("weighting", [ClippedWeights, CentredWeights])
@pytest.mark.parametrize("ceiling", [0.0, -1.0, math.nan])
def test_a_ceiling_that_leaves_no_weight_is_refused(weighting, ceiling):
    with pytest.raises(UserError, match=f"max_weight should be positive, got {ceiling}"):
        weighting(ceiling)


def test_what_was_measured_is_in_the_checkpoint():
    options = {"scale": RunningMax(), "kl_target": KLTarget(0.05), "alpha": 0.2, "beta": 0.3}
    module, resumed = make_module(now=SAMPLING, **options), make_module(now=SAMPLING, **options)
    loud = drawn_by(module, PROMPTS, RESPONSES, scores=10 * drawn_by(module, PROMPTS, RESPONSES).scores)
    module.prepare(loud)
    resumed.load_state_dict(module.state_dict())
    assert float(resumed.price_factor) == float(module.price_factor) > 1
    assert float(resumed.measured_scale) == float(module.measured_scale) > 1
    quiet = drawn_by(module, PROMPTS, RESPONSES)
    weights = module.prepare(quiet)[0].weights
    assert torch.equal(resumed.prepare(quiet)[0].weights, weights)
    assert not torch.equal(make_module(now=SAMPLING, **options).prepare(quiet)[0].weights, weights)
