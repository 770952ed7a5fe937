"""Credit for tokens: sums written out, and the limits that have names."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import clipped_value_loss, gae, kl_to_go, macro_gae, token_rewards, whitened

torch.manual_seed(0)
REWARDS, VALUES, KL = torch.randn(3, 2, 3, 6, dtype=torch.float64)  # [B, K, T] each
MASK = torch.tensor([[5, 0, 2], [6, 1, 4]]).unsqueeze(-1) > torch.arange(6)
HOLED = MASK & (torch.arange(6) != 2)  # a turn of somebody else's inside the response


def enumerated(rewards, values, gamma, lam):
    """``A_t = sum_l (gamma lam)^l delta_{t+l}`` of one response, each ``delta`` from its definition; no recursion."""
    values = [*values, 0.0]
    deltas = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** (i - t) * deltas[i] for i in range(t, len(deltas))) for t in range(len(deltas))]


def own(x, mask):
    """The tokens of every response, as lists."""
    return [row[which].tolist() for row, which in zip(x.flatten(0, 1), mask.flatten(0, 1), strict=True)]


@pytest.mark.parametrize("mask", [MASK, HOLED], ids=["plain", "holed"])
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.5), (0.7, 0.0), (0.8, 1.0)])
def test_advantages_are_the_discounted_sums_of_errors(gamma, lam, mask):
    junk = torch.full_like(REWARDS, math.nan)  # what stands elsewhere is not read
    advantages, returns = gae(REWARDS.where(mask, junk), VALUES.where(mask, junk), mask, gamma=gamma, lam=lam)
    expected = [enumerated(r, v, gamma, lam) for r, v in zip(own(REWARDS, mask), own(VALUES, mask), strict=True)]
    for found, wanted in zip(own(advantages, mask), expected, strict=True):
        assert found == pytest.approx(wanted)
    assert_close(returns, (advantages + VALUES).where(mask, 0.0))
    assert advantages[~mask].count_nonzero() == returns[~mask].count_nonzero() == 0


def test_lambda_one_counts_to_the_end_and_telescopes():
    advantages, returns = gae(REWARDS, VALUES, MASK, gamma=1.0, lam=1.0)
    assert_close(returns, kl_to_go(REWARDS, MASK).where(MASK, 0.0))  # whatever the critic said
    assert_close(advantages, (returns - VALUES).where(MASK, 0.0))


def test_lambda_zero_is_the_error_of_one_step():
    _, returns = gae(REWARDS, VALUES, MASK, gamma=0.5, lam=0.0)
    following = VALUES.where(MASK, 0.0).roll(-1, -1)
    following[..., -1] = 0.0
    assert_close(returns, (REWARDS + 0.5 * following).where(MASK, 0.0))


def test_a_critic_that_knows_leaves_nothing():
    exact = kl_to_go(REWARDS, MASK)
    for lam in (0.0, 0.3, 1.0):
        assert gae(REWARDS, exact, MASK, gamma=1.0, lam=lam)[0].abs().max() < 1e-12


@pytest.mark.parametrize("mask", [MASK, HOLED], ids=["plain", "holed"])
def test_macro_actions_of_one_token_are_gae(mask):
    for found, wanted in zip(
        macro_gae(REWARDS, VALUES, mask, gamma=0.9, lam=0.5, length=1), gae(REWARDS, VALUES, mask, gamma=0.9, lam=0.5), strict=True
    ):
        assert_close(found, wanted)


@pytest.mark.parametrize("length", [6, 9])
def test_one_macro_action_is_the_whole_response(length):
    advantages, returns = macro_gae(REWARDS, VALUES, MASK, gamma=0.9, lam=0.5, length=length)
    count = MASK.sum(-1, keepdim=True).clamp(min=1)
    total, value = (x.where(MASK, 0.0).sum(-1, keepdim=True) for x in (REWARDS, VALUES))
    assert_close(returns, total.expand_as(MASK).where(MASK, 0.0))
    assert_close(advantages, (total - value / count).expand_as(MASK).where(MASK, 0.0))


@pytest.mark.parametrize("mask", [MASK, HOLED], ids=["plain", "holed"])
def test_macro_actions_written_out(mask):
    """Runs of two: rewards summed, values averaged, GAE over the runs, each token the advantage of its run."""
    advantages, returns = macro_gae(REWARDS, VALUES, mask, gamma=0.9, lam=0.5, length=2)
    for rewards, values, found, targets in zip(*(own(x, mask) for x in (REWARDS, VALUES, advantages, returns)), strict=True):
        runs = [slice(i, i + 2) for i in range(0, len(rewards), 2)]
        means = [sum(values[run]) / len(values[run]) for run in runs]
        expected = enumerated([sum(rewards[run]) for run in runs], means, 0.9, 0.5)
        assert found == pytest.approx([expected[t // 2] for t in range(len(rewards))])
        assert targets == pytest.approx([expected[t // 2] + means[t // 2] for t in range(len(rewards))])


def test_rewards_of_tokens_sum_to_the_score_less_the_price():
    scores = torch.tensor([[1.0, -2.0, 0.5], [3.0, 0.1, 0.2]], dtype=torch.float64)
    rewards = token_rewards(scores, KL.where(MASK, math.nan), MASK, beta=0.3)
    summed = (scores - 0.3 * KL.where(MASK, 0.0).sum(-1)).where(MASK.any(-1), 0.0)
    assert_close(rewards.sum(-1), summed)
    assert_close(token_rewards(0 * scores, KL, MASK, beta=0.3), (-0.3 * KL).where(MASK, 0.0))
    placed = token_rewards(scores, KL, MASK, beta=0.0)
    assert placed[1, 2].tolist() == [0, 0, 0, scores[1, 2], 0, 0]
    assert placed[0, 1].count_nonzero() == 0  # no token to give it to


def test_whitening_divides_by_the_deviation_and_moves_the_mean_only_if_told():
    values = (5 + 3 * REWARDS).where(MASK, math.nan)
    for shift, mean in ((True, 0.0), (False, float(values[MASK].mean()))):
        found = whitened(values, MASK, shift_mean=shift)
        assert float(found[MASK].mean()) == pytest.approx(mean)
        assert float(found[MASK].std(correction=0)) == pytest.approx(1.0)
        assert found[~MASK].count_nonzero() == 0
        assert torch.equal(found[MASK].argsort(), values[MASK].argsort())
    equal = whitened(torch.full((3,), 7.0), torch.ones(3).bool(), shift_mean=False)
    assert equal.tolist() == [7.0, 7.0, 7.0]  # nothing to divide by


@pytest.mark.parametrize(
    ("value", "old", "target", "slope"),
    [
        (0.1, 0.0, 1.0, -0.9),  # has not moved far
        (0.5, 0.0, 1.0, 0.0),  # has moved towards it: enough for one rollout
        (-0.5, 0.0, 1.0, -1.5),  # has moved away from it: may come back
        (1.5, 0.0, 1.0, 0.0),  # has moved past it, but what it may have moved to is still worse
        (-0.5, 0.0, -1.0, 0.0),
        (0.5, 0.0, -1.0, 1.5),
    ],
)
def test_a_value_that_has_gone_far_enough_has_no_gradient(value, old, target, slope):
    values = torch.tensor([value], requires_grad=True)
    losses, clipped = clipped_value_loss(values, torch.tensor([old]), torch.tensor([target]), clip=0.2)
    assert float(torch.autograd.grad(losses.sum(), values)[0]) == pytest.approx(slope)
    assert bool(clipped) == (slope == 0)
    assert losses.item() >= (value - target) ** 2 / 2 - 1e-6
    free, _ = clipped_value_loss(values, torch.tensor([old]), torch.tensor([target]), clip=math.inf)
    assert free.item() == pytest.approx((value - target) ** 2 / 2)
