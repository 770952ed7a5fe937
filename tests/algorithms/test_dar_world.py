"""Where DAR goes, in a world where every group of responses is a row: expectations are exact, and so is what they are compared with."""

import math
from itertools import pairwise

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
    ReferenceStd,
    group_centred,
    leave_one_out,
)
from tests.algorithms.worlds import (
    REFERENCE,
    REWARDS,
    SAMPLING,
    Groups,
    drawn_by,
    expected_loss,
    fitted,
    gradient,
    make_module,
    normalised,
    total_variation,
)

NO_CLIP = ClippedWeights(math.inf)
PRICES = [(0.4, 0.6), (0.0, 0.8), (0.7, 0.0), (0.05, 0.45)]


def theorem(alpha, beta, rewards=REWARDS):
    """Theorem 4.1: what maximises E[r] - alpha KL(pi || pi_ref) - beta KL(pi || pi_t), with pi_t = SAMPLING."""
    return normalised((alpha * REFERENCE.log() + beta * SAMPLING.log() + rewards) / (alpha + beta))


def tilted(strength, rewards=REWARDS):
    """``pi_ref exp(strength r) / Z``."""
    return normalised(REFERENCE.log() + strength * rewards)


def run(module, k, rounds, rows=None):
    """The policy after each fully fitted round, from the start on, ``[rounds + 1, P, R]``."""
    path = [module.policy.probabilities]
    for _ in range(rounds):
        groups = Groups.of(module.policy, k)
        module.policy.become(fitted(module, groups if rows is None else groups.replicated(rows)))
        path.append(module.policy.probabilities)
    return torch.stack(path)


def test_the_theorem_is_the_maximum():
    """The closed form itself: no policy near it has a larger regularised reward."""
    alpha, beta = 0.4, 0.6

    def value(policy):
        towards = alpha * (policy / REFERENCE).log() + beta * (policy / SAMPLING).log()
        return (policy * (REWARDS - towards)).sum(-1)

    best = theorem(alpha, beta)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        other = normalised(best.log() + 0.1 * torch.randn(best.shape, generator=generator, dtype=best.dtype))
        assert (value(other) < value(best)).all()


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_a_fitted_step_is_theorem_4_1_with_leave_one_out(alpha, beta, k):
    module = make_module(now=SAMPLING, alpha=alpha, beta=beta, weighting=NO_CLIP, baseline=leave_one_out, scale=FixedScale())
    assert_close(fitted(module, Groups.of(module.policy, k)), theorem(alpha, beta), atol=1e-12, rtol=0)


@pytest.mark.parametrize("k", [2, 3, 4])
@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_with_the_group_mean_rewards_are_weaker_by_k_minus_1_over_k(alpha, beta, k):
    module = make_module(now=SAMPLING, alpha=alpha, beta=beta, weighting=NO_CLIP, baseline=group_centred, scale=FixedScale())
    assert_close(fitted(module, Groups.of(module.policy, k)), theorem(alpha, beta, REWARDS * (k - 1) / k), atol=1e-12, rtol=0)


def test_a_batch_mean_serves_one_response_per_prompt():
    module = make_module(now=SAMPLING, alpha=0.4, beta=0.6, weighting=NO_CLIP, baseline=BatchMean(), scale=FixedScale(2.0))
    assert_close(fitted(module, Groups.of(module.policy, 1)), theorem(0.4, 0.6, REWARDS / 2), atol=1e-12, rtol=0)


def test_descending_the_loss_reaches_the_fitted_policy():
    """What ``fitted`` reads off the loss is where its minimum is."""
    module = make_module(now=SAMPLING, alpha=0.4, beta=0.6, weighting=NO_CLIP, baseline=leave_one_out, scale=FixedScale())
    groups = Groups.of(module.policy, 3)
    loss, _, batch = expected_loss(module, groups)
    assert gradient(module, loss).abs().max() > 1e-2
    optimizer = torch.optim.LBFGS(module.policy.parameters(), max_iter=200, line_search_fn="strong_wolfe", tolerance_change=1e-15)

    def closure():
        optimizer.zero_grad()
        loss = expected_loss(module, groups, batch)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    assert_close(module.policy.probabilities, theorem(0.4, 0.6), atol=1e-6, rtol=0)


# Rounds


@pytest.mark.parametrize(
    ("baseline", "k", "strength"), [(leave_one_out, 2, 1.0), (leave_one_out, 4, 1.0), (group_centred, 2, 0.5), (group_centred, 4, 0.75)]
)
def test_rounds_end_at_the_tilted_reference(baseline, k, strength):
    module = make_module(alpha=0.4, beta=0.6, weighting=NO_CLIP, baseline=baseline, scale=FixedScale(2.0))
    assert_close(run(module, k, 50)[-1], tilted(strength / (0.4 * 2.0)), atol=1e-9, rtol=0)


def test_beta_sets_the_step_and_not_the_end():
    ends = tilted(1 / 0.4).log()
    for beta in (0.1, 0.4, 1.2):
        module = make_module(now=SAMPLING, alpha=0.4, beta=beta, weighting=NO_CLIP, baseline=leave_one_out, scale=FixedScale())
        distance = run(module, 2, 3).log() - ends
        distance = distance - distance.mean(-1, keepdim=True)
        for before, after in pairwise(distance):
            assert_close(after, before * beta / (0.4 + beta), atol=1e-9, rtol=0)


@pytest.mark.parametrize("k", [3, 4])
def test_group_weights_end_at_the_tilted_reference_too(k):
    """There every log weight is a constant, so weights are 1 at any K: the bias is of the path, not of the end."""
    module = make_module(alpha=0.4, beta=0.6, weighting=GroupWeights(), scale=FixedScale(2.0))
    assert_close(run(module, k, 60)[-1], tilted(1 / (0.4 * 2.0)), atol=1e-6, rtol=0)


def test_a_step_of_group_weights_misses_the_theorem_by_one_over_k():
    """Measured, total variation: .247 at K = 2, .132 at 4, .0620 at 8, .0288 at 16; clipped weights without a clip have 0."""
    misses = {}
    for k in (4, 8, 16):
        module = make_module(now=SAMPLING, alpha=0.4, beta=0.6, weighting=GroupWeights(), scale=FixedScale())
        misses[k] = total_variation(fitted(module, Groups.of(module.policy, k)), theorem(0.4, 0.6))
    assert misses[4] == pytest.approx(0.132, abs=0.005)
    assert misses[16] == pytest.approx(0.0288, abs=0.002)
    assert misses[16] / misses[8] == pytest.approx(0.5, abs=0.05)


def test_group_weights_give_every_prompt_the_same_say():
    """Without 1/Z(x), prompts of a large spread pull harder."""
    totals = {}
    for weighting in (NO_CLIP, GroupWeights()):
        module = make_module(alpha=0.4, beta=0.1, weighting=weighting, scale=FixedScale())
        groups = Groups.of(module.policy, 4)
        weights = module.prepare(drawn_by(module, groups.prompts, groups.responses))[0].weights.mean(-1) * groups.probabilities
        totals[weighting] = torch.stack([weights[groups.prompts == p].sum() for p in range(2)])
    assert totals[NO_CLIP][1] > 2 * totals[NO_CLIP][0]
    assert_close(totals[GroupWeights()], torch.ones(2, dtype=torch.float64))


# The published setting


@pytest.mark.parametrize("k", [2, 4])
def test_published_dar_never_loses_reward_and_ends_deterministic(k):
    """Measured mean reward (.0875 at the reference, 1.5 is the largest there is) after rounds 1, 2, 3, 4, 5:
    K = 2: .636, 1.064, 1.411, 1.500, 1.500; K = 4: .656, 1.111, 1.483, 1.500, 1.500. The anchor does not hold."""
    module = make_module()
    assert (module.alpha, module.beta, module.weighting, module.baseline, module.scale) == (
        0.005,
        0.045,
        ClippedWeights(20.0),
        group_centred,
        BatchStd(),
    )
    path = run(module, k, 12, rows=5000)
    rewards = (path * REWARDS).sum(-1)  # [rounds + 1, P]
    assert (rewards.diff(dim=0) >= -1e-9).all()
    assert rewards[0].mean() == pytest.approx(0.0875)
    assert rewards[1].mean() == pytest.approx({2: 0.636, 4: 0.656}[k], abs=0.02)
    assert rewards[2].mean() == pytest.approx({2: 1.064, 4: 1.111}[k], abs=0.03)
    assert_close(path[-1], torch.nn.functional.one_hot(REWARDS.argmax(-1), 5).double(), atol=1e-6, rtol=0)


def price_of(module, k, rows=None):
    """Reward per nat, at the policy as it is."""
    groups = Groups.of(module.policy, k) if rows is None else Groups.of(module.policy, k).replicated(rows)
    return float(module.prepare(drawn_by(module, groups.prompts, groups.responses))[1]["kl/price"])


def test_with_the_batch_std_the_price_dies_and_rounds_end_deterministic():
    """At alpha = beta = .5 and without a clip: it is not the small alpha alone."""
    module = make_module(alpha=0.5, beta=0.5, weighting=NO_CLIP, baseline=leave_one_out, scale=BatchStd())
    first = price_of(module, 4, rows=2000)
    end = run(module, 4, 25, rows=2000)[-1]
    assert end.amax(-1).min() > 0.999
    assert price_of(module, 4, rows=2000) < 1e-3 * first


def test_with_the_reference_std_the_price_stays_and_rounds_end_at_the_tilted_reference():
    module = make_module(alpha=0.5, beta=0.5, weighting=NO_CLIP, baseline=leave_one_out, scale=ReferenceStd())
    first = price_of(module, 4)
    end = run(module, 4, 40)[-1]
    assert_close(end, tilted(1 / first), atol=1e-6, rtol=0)
    assert price_of(module, 4) == pytest.approx(first, rel=1e-6)


# Centred weights


def gradients(weighting, k, baseline, at=None):
    """The expected gradient at pi_theta = pi_t, or at another policy."""
    module = make_module(now=SAMPLING, alpha=0.4, beta=0.6, weighting=weighting, baseline=baseline, scale=FixedScale())
    groups = Groups.of(module.policy, k)
    _, _, batch = expected_loss(module, groups)
    if at is not None:
        module.policy.become(at)
    return gradient(module, expected_loss(module, groups, batch)[0])


@pytest.mark.parametrize("ceiling", [math.inf, 1.2])
@pytest.mark.parametrize("k", [2, 3])
def test_centring_weights_leaves_the_expected_gradient(k, ceiling):
    """Exactly, where a weight is a function of its own response alone."""
    plain = gradients(ClippedWeights(ceiling), k, BatchMean())
    assert plain.abs().max() > 0.05
    assert_close(gradients(CentredWeights(ceiling), k, BatchMean()), plain, atol=1e-12, rtol=0)


def test_with_a_baseline_of_siblings_centring_moves_the_gradient_by_one_over_k():
    """Measured, relative to the gradient: .365 at K = 4, .159 at 8, .0749 at 16."""
    misses = {}
    for k in (4, 8, 16):
        plain = gradients(NO_CLIP, k, leave_one_out)
        misses[k] = float((gradients(CentredWeights(math.inf), k, leave_one_out) - plain).norm() / plain.norm())
    assert misses[16] == pytest.approx(0.075, abs=0.01)
    assert misses[16] / misses[8] == pytest.approx(0.5, abs=0.1)


def test_away_from_the_sampling_policy_centring_changes_the_direction():
    plain, centred = (gradients(weighting, 2, BatchMean(), at=REFERENCE) for weighting in (NO_CLIP, CentredWeights(math.inf)))
    assert (plain - centred).norm() > 0.2 * plain.norm()


# Equal rewards


def test_equal_rewards_on_policy_are_imitation_of_ones_own_samples():
    """The loss is the summed negative log-likelihood, to the bit; its expected gradient is nothing, that of a sample is not."""
    module = make_module()
    groups = Groups.of(module.policy, 2)
    batch = drawn_by(module, groups.prompts, groups.responses, scores=torch.full_like(groups.responses, 0.1, dtype=torch.float64))
    prepared, _ = module.prepare(batch)
    assert (prepared.weights == 1).all()
    losses, _ = module.objective(prepared, module.policy(prepared))
    nll = -module.policy(prepared).token_logps.where(prepared.loss_mask, 0.0).sum(-1)
    assert torch.equal(losses, nll)
    one, other = (gradient(module, loss[0].sum()) for loss in (losses, nll))
    assert torch.equal(one, other)
    assert one.abs().max() > 0.1
    losses, _ = module.objective(prepared, module.policy(prepared))
    assert_close(gradient(module, (groups.probabilities.unsqueeze(-1) * losses).sum()), torch.zeros(14, dtype=torch.float64))
