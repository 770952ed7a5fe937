"""What the weights do to a policy, in a world of one prompt and a few responses, where every expectation is a finite sum.

``response``: an index. A policy: a vector of probabilities in float64. A draw of K responses is a row of indices, and all draws
are enumerated with their probabilities, so nothing here is sampled.
"""

from collections.abc import Callable
from itertools import combinations_with_replacement

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.functional import (
    centred_weights,
    dar_group_weights,
    dar_weights,
    group_centred,
    kl_from_logits,
    leave_one_out,
)

REFERENCE = torch.tensor([0.1, 0.4, 0.3, 0.2], dtype=torch.float64)
SAMPLING = torch.tensor([0.35, 0.15, 0.1, 0.4], dtype=torch.float64)
REWARD = torch.tensor([1.3, -0.4, 0.7, 0.1], dtype=torch.float64)
PRICES = [(0.3, 0.7), (0.5, 0.5), (0.9, 0.2), (0.0, 0.8), (0.6, 0.0)]


def normalised(masses: Tensor) -> Tensor:
    return masses / masses.sum()


def closed_form(reward: Tensor, alpha: float, beta: float, sampling: Tensor = SAMPLING) -> Tensor:
    """Theorem 4.1, as it is printed."""
    tau = alpha + beta
    return normalised(REFERENCE ** (alpha / tau) * sampling ** (beta / tau) * torch.exp(reward / tau))


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p / q).log()).sum()


def regularised_value(policy: Tensor, alpha: float, beta: float) -> Tensor:
    return (policy * REWARD).sum() - alpha * divergence(policy, REFERENCE) - beta * divergence(policy, SAMPLING)


def minimiser(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The policy at which a numeric optimiser, told nothing but the loss of some logits, comes to rest."""
    logits = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(-1)


def weights_of(
    advantages: Tensor, responses: Tensor, alpha: float, beta: float, weighting=dar_weights, sampling: Tensor = SAMPLING
) -> Tensor:
    return weighting(advantages, REFERENCE.log()[responses], sampling.log()[responses], alpha=alpha, beta=beta)


def every_draw(size: int, policy: Tensor = SAMPLING) -> tuple[Tensor, Tensor]:
    """All draws of ``size`` responses up to their order ``[N, size]``, and their probabilities ``[N]``."""
    draws = torch.tensor(list(combinations_with_replacement(range(len(policy)), size)))
    counts = torch.nn.functional.one_hot(draws, len(policy)).sum(1).double()
    orders = torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64)) - torch.lgamma(counts + 1).sum(-1)
    return draws, (orders + policy.log()[draws].sum(-1)).exp()


def expected_target(size: int, baseline, alpha: float, beta: float, weighting=dar_weights, sampling: Tensor = SAMPLING) -> Tensor:
    """Expected weight on each response over all draws, normalised: the policy that a full fit of an endless batch would reach."""
    draws, probabilities = every_draw(size, sampling)
    weights = weights_of(baseline(REWARD[draws]), draws, alpha, beta, weighting, sampling)
    masses = torch.zeros(4, dtype=torch.float64).index_add_(0, draws.flatten(), (probabilities.unsqueeze(-1) * weights).flatten())
    return normalised(masses)


def exact_target(sampling: Tensor, alpha: float, beta: float) -> Tensor:
    return normalised(sampling * weights_of(REWARD, torch.arange(4), alpha, beta, sampling=sampling))


def test_enumeration_counts_every_draw_once():
    for size in (1, 2, 3, 4):
        draws, probabilities = every_draw(size)
        assert probabilities.sum().item() == pytest.approx(1.0, abs=1e-12)
        ordered = torch.cartesian_prod(*[torch.arange(4)] * size).reshape(-1, size)
        row = draws[len(draws) // 2]
        chance = sum(SAMPLING[r].prod().item() for r in ordered if torch.equal(r.sort().values, row))
        assert probabilities[len(draws) // 2].item() == pytest.approx(chance, abs=1e-12)


# The theorem


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_imitating_weighted_samples_is_imitating_the_regularised_optimum(alpha, beta):
    imitated = exact_target(SAMPLING, alpha, beta)
    assert_close(imitated, closed_form(REWARD, alpha, beta), atol=1e-12, rtol=0)
    assert_close(imitated, minimiser(lambda logits: -regularised_value(logits.softmax(-1), alpha, beta)), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_the_regression_itself_comes_to_rest_at_the_optimum(alpha, beta):
    weights = weights_of(REWARD, torch.arange(4), alpha, beta)
    rest = minimiser(lambda logits: -(SAMPLING * weights * logits.log_softmax(-1)).sum())
    assert_close(rest, closed_form(REWARD, alpha, beta), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
def test_the_best_value_is_the_log_of_the_normaliser(alpha, beta):
    log_normaliser = (SAMPLING * weights_of(REWARD, torch.arange(4), alpha, beta)).sum().log()
    best = regularised_value(exact_target(SAMPLING, alpha, beta), alpha, beta)
    assert best.item() == pytest.approx((alpha + beta) * log_normaliser.item(), abs=1e-12)
    for other in (SAMPLING, REFERENCE, torch.full_like(REFERENCE, 0.25)):
        assert regularised_value(other, alpha, beta) < best


def test_the_gradient_is_that_of_the_divergence_from_the_optimum_times_the_normaliser():
    logits = torch.tensor([0.3, -0.2, 1.0, 0.0], dtype=torch.float64, requires_grad=True)  # any policy, not only pi_t
    weights = weights_of(REWARD, torch.arange(4), 0.3, 0.7)
    (regression,) = torch.autograd.grad(-(SAMPLING * weights * logits.log_softmax(-1)).sum(), logits)
    (projection,) = torch.autograd.grad(kl_from_logits(closed_form(REWARD, 0.3, 0.7).log(), logits), logits)
    assert_close(regression, (SAMPLING * weights).sum() * projection)


def test_prices_go_to_their_limits():
    assert_close(exact_target(SAMPLING, 0.0, 0.5), normalised(SAMPLING * (REWARD / 0.5).exp()))
    assert_close(exact_target(SAMPLING, 0.5, 0.0), normalised(REFERENCE * (REWARD / 0.5).exp()))
    assert_close(exact_target(SAMPLING, 1e9, 3e9), normalised(REFERENCE**0.25 * SAMPLING**0.75))
    assert_close(exact_target(SAMPLING, 1e-2, 1e-2), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("constant", [-3.0, 5.0])
def test_any_baseline_of_the_prompt_leaves_the_optimum_alone(constant):
    weights = weights_of(REWARD + constant, torch.arange(4), 0.3, 0.7)
    assert_close(normalised(SAMPLING * weights), closed_form(REWARD, 0.3, 0.7))


# K samples


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_leave_one_out_aims_exactly_at_the_optimum_for_any_number_of_samples(size, alpha, beta):
    assert_close(expected_target(size, leave_one_out, alpha, beta), closed_form(REWARD, alpha, beta), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("alpha", "beta"), PRICES)
@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_group_mean_weakens_the_reward_by_k_minus_one_over_k(size, alpha, beta):
    target = expected_target(size, group_centred, alpha, beta)
    assert_close(target, closed_form((size - 1) / size * REWARD, alpha, beta), atol=1e-12, rtol=0)


def test_one_sample_and_its_own_mean_leave_no_signal():
    def own_mean(scores: Tensor) -> Tensor:
        return scores - scores.mean(-1, keepdim=True)

    assert_close(expected_target(1, own_mean, 0.3, 0.7), closed_form(0 * REWARD, 0.3, 0.7))


def test_group_weights_aim_at_the_optimum_with_an_error_of_one_over_k():
    def distance(size: int) -> float:
        target = expected_target(size, group_centred, 0.3, 0.7, dar_group_weights)
        return (target - closed_form(REWARD, 0.3, 0.7)).abs().sum().item() / 2

    small, middle, large = (distance(size) for size in (8, 16, 32))
    assert 0.005 < small < 0.1
    assert small / middle == pytest.approx(2.0, rel=0.15)
    assert middle / large == pytest.approx(2.0, rel=0.08)


# Rounds


@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.7), (0.5, 0.5), (0.9, 0.2), (0.6, 0.0)])
def test_exact_rounds_contract_towards_the_reference_tilted_by_the_reward(alpha, beta):
    """The log-ratio to the end point, whose constant is the normaliser's, shrinks by beta / (alpha + beta) in every round."""
    end, policy = normalised(REFERENCE * (REWARD / alpha).exp()), SAMPLING
    for _ in range(5):
        before = (policy / end).log()
        policy = exact_target(policy, alpha, beta)
        after = (policy / end).log()
        assert_close(after - after.mean(), beta / (alpha + beta) * (before - before.mean()), atol=1e-12, rtol=0)
    for _ in range(100):
        policy = exact_target(policy, alpha, beta)
    assert_close(policy, end, atol=1e-12, rtol=0)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("baseline", "strength"), [(leave_one_out, lambda k: 1.0), (group_centred, lambda k: (k - 1) / k)])
def test_rounds_of_k_samples_end_where_their_baseline_says(size, baseline, strength):
    alpha, beta, policy = 0.5, 0.5, SAMPLING
    end = normalised(REFERENCE * (strength(size) * REWARD / alpha).exp())
    first = (SAMPLING / end).log()
    policy = expected_target(size, baseline, alpha, beta, sampling=policy)
    assert_close((policy / end).log() - (policy / end).log().mean(), 0.5 * (first - first.mean()), atol=1e-12, rtol=0)
    for _ in range(60):
        policy = expected_target(size, baseline, alpha, beta, sampling=policy)
    assert_close(policy, end, atol=1e-10, rtol=0)


def test_without_an_anchor_rounds_end_at_the_best_response():
    policy = SAMPLING
    for _ in range(60):
        policy = exact_target(policy, 0.0, 0.5)
    assert policy[REWARD.argmax()].item() == pytest.approx(1.0, abs=1e-12)


def test_rounds_of_group_weights_end_at_the_tilted_reference_for_many_samples():
    alpha, beta = 0.5, 0.5
    end, distances = normalised(REFERENCE * (REWARD / alpha).exp()), []
    for size in (6, 12, 24):
        policy = SAMPLING
        for _ in range(25):
            policy = expected_target(size, leave_one_out, alpha, beta, dar_group_weights, policy)
        distances.append((policy - end).abs().sum().item() / 2)
    assert distances[0] / distances[1] == pytest.approx(2.0, rel=0.15)
    assert distances[1] / distances[2] == pytest.approx(2.0, rel=0.15)
    assert distances[2] < 0.02


# The gradient at the sampling policy


def expected_gradient(size: int, weights: Callable[[Tensor], Tensor]) -> Tensor:
    """Of ``-1/K sum_k w_k log pi_theta(y_k)`` with respect to the logits, at ``pi_theta = pi_t``, over all draws."""
    draws, probabilities = every_draw(size)
    logits = SAMPLING.log().requires_grad_()
    losses = -(weights(draws) * logits.log_softmax(-1)[draws]).mean(-1)
    return torch.autograd.grad((probabilities * losses).sum(), logits)[0]


def policy_gradient(reward: Tensor) -> Tensor:
    logits = SAMPLING.log().requires_grad_()
    return torch.autograd.grad((logits.softmax(-1) * reward).sum(), logits)[0]


@pytest.mark.parametrize(
    ("weighting", "baseline", "strength"),
    [
        (dar_weights, leave_one_out, 1.0),
        (dar_weights, group_centred, 2 / 3),
        (dar_group_weights, leave_one_out, 1.0),  # dividing by the group's mean centres, which these advantages are already
        (dar_group_weights, group_centred, 2 / 3),
        (dar_group_weights, lambda scores: scores, 2 / 3),
    ],
)
def test_small_advantages_on_policy_are_a_policy_gradient(weighting, baseline, strength):
    """Of three samples, with the opposite sign (a loss descends) and one over the price of a nat."""
    alpha, beta, size, logps = 0.2, 0.3, 1e-5, SAMPLING.log()

    def weights(draws: Tensor) -> Tensor:
        return weighting(baseline(size * REWARD[draws]), logps[draws], logps[draws], alpha=alpha, beta=beta)

    expected = -strength / (alpha + beta) * policy_gradient(REWARD)
    assert_close(expected_gradient(3, weights) / size, expected, rtol=1e-4, atol=1e-6)


def test_plain_imitation_of_own_samples_moves_nothing_on_average():
    assert_close(expected_gradient(3, lambda draws: torch.ones_like(draws, dtype=torch.float64)), torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("size", [2, 3, 5])
def test_centred_weights_keep_the_expected_gradient_of_weights_that_stand_alone(size):
    def free(draws: Tensor) -> Tensor:
        return weights_of(REWARD[draws], draws, 0.3, 0.7)

    expected = expected_gradient(size, free)
    assert expected.abs().max() > 0.1
    assert_close(expected_gradient(size, lambda draws: centred_weights(free(draws))), expected, atol=1e-12, rtol=0)


def test_centred_weights_of_a_group_baseline_are_off_by_one_over_k():
    def distance(size: int) -> float:
        def grouped(draws: Tensor) -> Tensor:
            return weights_of(group_centred(REWARD[draws]), draws, 0.3, 0.7)

        return (expected_gradient(size, lambda d: centred_weights(grouped(d))) - expected_gradient(size, grouped)).abs().max().item()

    small, middle, large = (distance(size) for size in (8, 16, 32))
    assert small > 1e-3
    assert small / middle == pytest.approx(2.0, rel=0.15)
    assert middle / large == pytest.approx(2.0, rel=0.08)


def test_centred_weights_make_the_gradient_less_noisy():
    """Trace of its covariance over all draws of four responses, near the reference, where weights are near 1."""
    draws, probabilities = every_draw(4)
    scores = torch.eye(4, dtype=torch.float64)[draws] - SAMPLING  # grad log pi(y_k), [N, K, V]

    def noise(weights: Tensor) -> float:
        gradients = (weights.unsqueeze(-1) * scores).mean(1)
        mean = (probabilities.unsqueeze(-1) * gradients).sum(0)
        return (probabilities.unsqueeze(-1) * (gradients - mean).square()).sum().item()

    weights = dar_weights(0.2 * REWARD[draws], SAMPLING.log()[draws], SAMPLING.log()[draws], alpha=0.3, beta=0.7)
    assert noise(centred_weights(weights)) < 0.2 * noise(weights)


def test_published_defaults_miss_the_theorem():
    """Their ceiling alone moves the target: the theorem is tested above where it holds, and here is known not to."""
    draws, probabilities = every_draw(4)
    weights = weights_of(group_centred(REWARD[draws]), draws, 0.005, 0.045, lambda *a, **k: dar_weights(*a, **k, max_weight=20.0))
    target = normalised(
        torch.zeros(4, dtype=torch.float64).index_add_(0, draws.flatten(), (probabilities.unsqueeze(-1) * weights).flatten())
    )
    assert (target - closed_form(REWARD, 0.005, 0.045)).abs().sum().item() / 2 > 0.2
    assert (target * REWARD).sum() > (SAMPLING * REWARD).sum()
    assert weights.max().item() == pytest.approx(20.0, rel=1e-12)
