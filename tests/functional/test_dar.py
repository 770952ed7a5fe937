"""Weights of single responses: limits, ceilings, gradients, invariances. What they do to a policy is in test_dar_theorem.py."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import (
    centred_weights,
    dar_group_weights,
    dar_log_weights,
    dar_weights,
    effective_sample_size,
    global_std,
    group_centred,
    is_clipped,
    leave_one_out,
)

generator = torch.Generator().manual_seed(0)
SCORES, REFERENCE, SAMPLING = (torch.randn(5, 4, generator=generator, dtype=torch.float64) * s - m for s, m in ((1, 0), (3, 40), (3, 40)))
ADVANTAGES = group_centred(SCORES)
PRICES = [(0.3, 0.7), (0.005, 0.045), (0.0, 0.5), (0.5, 0.0), (2.0, 1.0)]
WEIGHTINGS = [dar_weights, dar_group_weights]


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_weights_are_the_product_of_both_factors(alpha, beta):
    towards_reference = (REFERENCE.exp() / SAMPLING.exp()) ** (alpha / (alpha + beta))
    towards_advantage = (ADVANTAGES / (alpha + beta)).exp()
    assert_close(dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=alpha, beta=beta), towards_reference * towards_advantage)


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_group_weights_are_shares_of_the_group_times_its_size(alpha, beta):
    weights = dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=alpha, beta=beta)
    expected = 4 * weights / weights.sum(-1, keepdim=True)
    assert_close(dar_group_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=alpha, beta=beta), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_without_a_reference_price_the_reference_does_not_matter(weighting):
    weights = weighting(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.0, beta=0.4)
    assert torch.equal(weights, weighting(ADVANTAGES, torch.full_like(REFERENCE, -math.inf), SAMPLING, alpha=0.0, beta=0.4))
    if weighting is dar_weights:
        assert_close(weights, (ADVANTAGES / 0.4).exp())


def test_without_a_sampling_price_weights_are_full_importance_weights():
    expected = (REFERENCE - SAMPLING + ADVANTAGES / 0.4).exp()
    assert_close(dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.4, beta=0.0), expected)


def test_large_prices_forget_the_reward():
    expected = ((REFERENCE - SAMPLING) / 4).exp()
    assert_close(dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=1e9, beta=3e9), expected, rtol=1e-8, atol=0)


def test_a_response_the_reference_cannot_give_is_not_imitated():
    reference = torch.tensor([[-math.inf, -1.0]])
    assert dar_weights(torch.zeros(1, 2), reference, torch.full((1, 2), -1.0), alpha=0.1, beta=0.9).tolist() == [[0.0, 1.0]]
    assert dar_group_weights(torch.zeros(1, 2), reference, torch.full((1, 2), -1.0), alpha=0.1, beta=0.9).tolist() == [[0.0, 2.0]]


def test_group_weights_of_a_vanishing_price_are_the_best_of_k():
    weights = dar_group_weights(SCORES, REFERENCE, REFERENCE, alpha=0.0, beta=1e-6)
    assert_close(weights, 4.0 * torch.nn.functional.one_hot(SCORES.argmax(-1), 4).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_equal_scores_on_policy_are_plain_imitation(alpha, beta, dtype):
    scores = torch.tensor([[0.1] * 3, [-7.7] * 3], dtype=dtype)
    logps = torch.tensor([[-3.3, -70.1, -0.4], [-9.0, -8.0, -7.0]], dtype=dtype)
    advantages = group_centred(scores)
    advantages = advantages / global_std(advantages, torch.ones_like(advantages, dtype=torch.bool)).clamp(min=1e-6)
    for weighting in WEIGHTINGS:
        assert weighting(advantages, logps, logps, alpha=alpha, beta=beta).tolist() == [[1.0] * 3] * 2
    assert centred_weights(dar_weights(advantages, logps, logps, alpha=alpha, beta=beta)).tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize(("alpha", "beta"), [(-0.1, 0.1), (0.0, 0.0), (0.1, -0.3), (math.nan, 1.0)])
def test_prices_that_bound_nothing_are_refused(weighting, alpha, beta):
    with pytest.raises(ValueError, match=f"alpha = {alpha} and beta = {beta}"):
        weighting(ADVANTAGES, REFERENCE, SAMPLING, alpha=alpha, beta=beta)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_shapes_that_would_broadcast_are_refused(weighting):
    with pytest.raises(ValueError, match=r"\(5, 4\), \(5, 4\) and \(5, 1\)"):
        weighting(ADVANTAGES, REFERENCE, SAMPLING[:, :1], alpha=0.1, beta=0.1)


@pytest.mark.parametrize("function", [dar_group_weights, centred_weights])
def test_one_response_per_prompt_is_refused_where_siblings_are_needed(function):
    arguments = {"alpha": 0.1, "beta": 0.1} if function is dar_group_weights else {}
    with pytest.raises(ValueError, match=rf"{function.__name__} .* K = 1\. Set responses_per_prompt >= 2, or choose .*ClippedWeights\(\)"):
        function(*[torch.zeros(3, 1)] * (3 if arguments else 1), **arguments)


def test_one_response_per_prompt_has_a_weight_under_a_batch_baseline():
    scores = torch.tensor([[1.0], [3.0]])
    logps = torch.tensor([[-2.0], [-5.0]])
    weights = dar_weights(scores - scores.mean(), logps, logps, alpha=0.5, beta=0.5)
    assert_close(weights, torch.tensor([[-1.0], [1.0]]).exp())


def test_weights_of_two_responses_on_policy_are_reciprocal():
    pairs, logps = group_centred(SCORES[:, :2]), SAMPLING[:, :2]
    assert_close(dar_weights(pairs, logps, logps, alpha=0.1, beta=0.4).prod(-1), torch.ones(5, dtype=torch.float64))


# Ceiling


@pytest.mark.parametrize("max_weight", [0.5, 1.0, 20.0])
def test_the_ceiling_cuts_the_product_from_above_only(max_weight):
    free = dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.2, beta=0.3)
    clipped = dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.2, beta=0.3, max_weight=max_weight)
    assert (free > max_weight).any()
    assert (free < max_weight).any()
    assert_close(clipped, torch.tensor([[min(w, max_weight) for w in row] for row in free.tolist()], dtype=torch.float64))
    log_weights = dar_log_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.2, beta=0.3)
    assert torch.equal(is_clipped(log_weights, max_weight), free > max_weight)


def test_factors_are_not_cut_before_they_are_multiplied():
    weights = dar_weights(torch.tensor([32.0]), torch.tensor([-60.0]), torch.tensor([0.0]), alpha=0.5, beta=0.5, max_weight=20.0)
    assert weights.item() == pytest.approx(math.exp(32 - 30))


def test_a_weight_at_the_ceiling_is_not_clipped():
    tau = 0.05
    for nudge, clipped in ((0.0, False), (1e-6, True), (-1e-6, False)):
        advantage = torch.tensor([tau * math.log(20) + nudge], dtype=torch.float64)
        logps = torch.tensor([-3.0], dtype=torch.float64)
        assert dar_weights(advantage, logps, logps, alpha=0.005, beta=0.045, max_weight=20.0).item() == pytest.approx(20.0, rel=1e-3)
        log_weights = dar_log_weights(advantage, logps, logps, alpha=0.005, beta=0.045)
        assert is_clipped(log_weights.float() if nudge == 0 else log_weights, 20.0).item() is clipped


def test_the_published_ceiling_binds_at_fifteen_hundredths_of_a_sigma_and_later_away_from_the_reference():
    for log_ratio, threshold in ((0.0, 0.150), (10.0, 0.200), (30.0, 0.300), (100.0, 0.650)):
        advantages = torch.tensor([threshold - 0.001, threshold + 0.001], dtype=torch.float64)
        log_weights = dar_log_weights(advantages, torch.full_like(advantages, -log_ratio), torch.zeros(2).double(), alpha=0.005, beta=0.045)
        assert is_clipped(log_weights, 20.0).tolist() == [False, True]


def test_without_a_ceiling_nothing_is_clipped():
    log_weights = torch.tensor([0.0, 1e4, math.inf])
    assert is_clipped(log_weights, math.inf).tolist() == [False, False, False]
    assert is_clipped(log_weights, 1e38).tolist() == [False, True, True]


@pytest.mark.parametrize("max_weight", [0.0, -20.0, math.nan])
def test_a_ceiling_that_leaves_nothing_is_refused(max_weight):
    with pytest.raises(ValueError, match="max_weight must be positive"):
        dar_weights(ADVANTAGES, REFERENCE, SAMPLING, alpha=0.1, beta=0.1, max_weight=max_weight)
    with pytest.raises(ValueError, match="max_weight must be positive"):
        is_clipped(ADVANTAGES, max_weight)


# Numbers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_log_weights_are_finite(dtype):
    advantages = torch.tensor([[1e4, -1e4, 0.0]], dtype=dtype)
    zero = torch.zeros_like(advantages)
    assert_close(dar_weights(advantages, zero, zero, alpha=0.5, beta=0.5, max_weight=20.0), torch.tensor([[20.0, 0.0, 1.0]]))
    assert dar_group_weights(advantages, zero, zero, alpha=0.5, beta=0.5).tolist() == [[3.0, 0.0, 0.0]]


def test_factors_of_e_to_the_three_hundred_cancel():
    """Apart, one is 0 and the other infinite in float32."""
    weights = dar_weights(torch.tensor([300.0]), torch.tensor([-600.0]), torch.tensor([0.0]), alpha=0.5, beta=0.5)
    assert weights.item() == 1.0


@pytest.mark.parametrize("weighting", [dar_log_weights, *WEIGHTINGS])
def test_low_precision_inputs_are_computed_in_float32(weighting):
    inputs = [x.bfloat16() for x in (ADVANTAGES, REFERENCE, SAMPLING)]
    weights = weighting(*inputs, alpha=0.02, beta=0.2)
    assert weights.dtype == torch.float32
    assert_close(weights.double(), weighting(*[x.double() for x in inputs], alpha=0.02, beta=0.2), rtol=1e-5, atol=1e-5)
    assert weighting(*inputs[:2], inputs[2].double(), alpha=0.02, beta=0.2).dtype == torch.float64


# Gradient


@pytest.mark.parametrize("centre", [False, True])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_loss_reaches_the_policy_only_through_its_own_logps(weighting, centre):
    """d loss / d logp = -w / (B K), also where the sampling policy's log-probs are those of the policy itself."""
    advantages, reference, logps = (x.clone().requires_grad_() for x in (ADVANTAGES, REFERENCE, SAMPLING))
    weights = weighting(advantages, reference, logps, alpha=0.3, beta=0.7)
    weights = centred_weights(weights) if centre else weights
    assert not weights.requires_grad
    (-weights * logps).mean().backward()
    assert logps.grad is not None
    assert_close(logps.grad, -weights / 20, atol=1e-15, rtol=1e-15)
    assert advantages.grad is None
    assert reference.grad is None


def test_diagnostics_carry_no_gradient():
    weights = torch.tensor([1.0, 2.0], requires_grad=True)
    assert not centred_weights(weights).requires_grad
    assert not effective_sample_size(weights).requires_grad
    assert not dar_log_weights(weights, weights, weights, alpha=0.1, beta=0.1).requires_grad


# Invariances


def weights_of(weighting, scores, reference=REFERENCE, sampling=SAMPLING, standardised=False):
    advantages = group_centred(scores)
    if standardised:
        advantages = advantages / global_std(advantages, torch.ones_like(advantages, dtype=torch.bool))
    return weighting(advantages, reference, sampling, alpha=0.2, beta=0.5)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_constant_of_the_prompt_added_to_scores_changes_no_weight(weighting):
    constants = torch.tensor([[5.0], [-100.0], [0.0], [3.0], [1e3]])
    assert_close(weights_of(weighting, SCORES + constants), weights_of(weighting, SCORES))


@pytest.mark.parametrize("standardised", [False, True])
@pytest.mark.parametrize("factor", [1e-3, 7.0])
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_the_unit_of_scores_matters_unless_the_batch_standardises_it(weighting, factor, standardised):
    before, after = (weights_of(weighting, SCORES * c, standardised=standardised) for c in (1.0, factor))
    assert torch.allclose(before, after) is standardised


def test_group_weights_need_no_baseline():
    """Any constant of the prompt in advantages or log-probs is part of Z."""
    constants = torch.tensor([[5.0], [-100.0], [0.0], [3.0], [1e3]])
    expected = dar_group_weights(SCORES, REFERENCE, SAMPLING, alpha=0.2, beta=0.5)
    assert_close(dar_group_weights(SCORES + constants, REFERENCE - constants, SAMPLING, alpha=0.2, beta=0.5), expected)
    assert_close(dar_group_weights(group_centred(SCORES), REFERENCE, SAMPLING, alpha=0.2, beta=0.5), expected)


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_order_and_splitting_of_a_batch_change_nothing(weighting):
    responses, prompts = [2, 0, 3, 1], [4, 1, 0, 3, 2]
    weights = weights_of(weighting, SCORES)
    shuffled = [x[prompts][:, responses] for x in (SCORES, REFERENCE, SAMPLING)]
    assert_close(weights_of(weighting, *shuffled), weights[prompts][:, responses])
    parts = [weights_of(weighting, *[x[rows] for x in (SCORES, REFERENCE, SAMPLING)]) for rows in (slice(0, 2), slice(2, 5))]
    assert_close(torch.cat(parts), weights)


# Rows that do not count


@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -math.inf, 1e30])
def test_group_weights_ignore_what_is_not_valid(rubbish):
    valid = torch.tensor([[True, False, True, True], [False, True, False, False], [False] * 4, [True] * 4, [True, True, False, False]])
    dirty = [x.where(valid, rubbish) for x in (SCORES, REFERENCE, SAMPLING)]
    weights = dar_group_weights(*dirty, alpha=0.2, beta=0.5, valid=valid)
    assert_close(weights.sum(-1), torch.tensor([3.0, 1.0, 0.0, 4.0, 2.0], dtype=torch.float64))
    assert (weights[~valid] == 0).all()
    alone = [x[:1, [0, 2, 3]] for x in (SCORES, REFERENCE, SAMPLING)]
    assert_close(weights[:1, [0, 2, 3]], dar_group_weights(*alone, alpha=0.2, beta=0.5))


def test_centred_weights_subtract_the_mean_of_valid_siblings():
    weights = torch.tensor([[0.5, 3.0, 1.0], [2.0, math.nan, 8.0], [math.inf, 4.0, math.nan]])
    valid = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    assert centred_weights(weights, valid).tolist() == [[-1.5, 2.25, -0.75], [-6.0, 0.0, 6.0], [0.0, 0.0, 0.0]]
    assert torch.equal(centred_weights(weights[:1]), leave_one_out(weights[:1]))


@pytest.mark.parametrize(
    ("weights", "share"),
    [
        ([3.0, 3.0, 3.0, 3.0], 1.0),
        ([0.0, 0.0, 5.0, 0.0], 0.25),
        ([1.0, 1.0, 0.0, 0.0], 0.5),
        ([1.0, 2.0, 3.0, 0.0], 36 / 56),
        ([0.0] * 4, 0.0),
    ],
)
@pytest.mark.parametrize("unit", [1.0, 1e-25, 1e30])
def test_effective_sample_size(weights, share, unit):
    scaled = torch.tensor(weights) * unit
    assert effective_sample_size(scaled, torch.ones(4, dtype=torch.bool)).item() == pytest.approx(share)
    padded = torch.cat([scaled, torch.tensor([math.nan, 1e37])]).reshape(2, 3)
    valid = torch.tensor([True] * 4 + [False] * 2).reshape(2, 3)
    assert effective_sample_size(padded, valid).item() == pytest.approx(share)
    assert effective_sample_size(scaled.bfloat16()).dtype == torch.float32


def test_effective_sample_size_of_nothing_is_nothing():
    assert effective_sample_size(torch.tensor([math.nan]), torch.tensor([False])).item() == 0.0
    assert effective_sample_size(torch.zeros(0, 4)).item() == 0.0


def test_clipped_weights_of_a_vanishing_price_are_a_filter_at_the_group_mean():
    weights = dar_weights(ADVANTAGES, SAMPLING, SAMPLING, alpha=1e-6, beta=1e-6, max_weight=20.0)
    assert_close(weights, 20.0 * (ADVANTAGES > 0).double())


def test_weights_without_a_ceiling_of_a_vanishing_price_are_one_sample_of_the_batch():
    weights = dar_weights(ADVANTAGES, SAMPLING, SAMPLING, alpha=1e-3, beta=2e-3)
    assert int(weights.argmax()) == int(ADVANTAGES.argmax())
    assert_close(effective_sample_size(weights), torch.tensor(1 / ADVANTAGES.numel(), dtype=torch.float64), rtol=1e-6, atol=0)
