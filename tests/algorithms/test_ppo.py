"""PPO enumerated: a policy gradient whatever the critic, its published loss with every detail, and what each detail does alone."""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.algorithms import GAE, PPO, Clip, KLTarget, MacroGAE
from lit_align.types import AlignmentBatch, Needs, UserError
from tests.algorithms.descent import pull, settled
from tests.algorithms.published import (
    REFERENCE_SAID,
    SAMPLING_SAID,
    assert_gradients_agree,
    members,
    rollout_at_sampling,
    said,
    sampling_groups,
)
from tests.algorithms.worlds import (
    LATER,
    MASK,
    REFERENCE,
    RESPONSES,
    REWARDS,
    STARTS,
    TableCritic,
    TablePolicy,
    drawn_by,
    expected_loss,
    gradient,
    normalised,
    value,
)

PLAIN: dict[str, Any] = {"missing_eos": None, "centre": False, "whiten_rewards": False, "whiten_advantages": False}
FIRST = torch.tensor([0.4, -0.3], dtype=torch.float64)
SECOND = torch.tensor([[0.2, 0.9], [-0.5, 0.1]], dtype=torch.float64)
REWARDED = GAE(gamma=0.0, lam=0.0)  # with it, returns are the rewards of tokens
PROMPTS, GROUPS = torch.tensor([0, 1]), torch.tensor([[0, 1, 4], [2, 3, 0]])


def ppo(**options: Any) -> PPO:
    return PPO(TablePolicy(REFERENCE), TableCritic(FIRST, SECOND), **({"beta": 0.0} | PLAIN | options))


def prepared(module: PPO, **options: Any) -> AlignmentBatch:
    """Six responses as drawn by ``LATER``."""
    module.policy.become(LATER)
    return module.prepare(drawn_by(module, PROMPTS, GROUPS, **options))[0]


# A policy gradient


@pytest.mark.parametrize("beta", [0.0, 0.5])
@pytest.mark.parametrize("credit", [GAE(lam=1.0), MacroGAE(lam=1.0, length=1)])
def test_with_lambda_one_the_expected_gradient_is_the_policy_gradient_whatever_the_critic(credit, beta):
    """Up to the mean length, as the mean is over tokens."""
    module = ppo(beta=beta, credit=credit)
    module.policy.become(LATER)
    length = (LATER * MASK.sum(-1)).sum(-1).mean()
    exact = gradient(module, -value(module.policy, beta))
    assert exact.abs().max() > 1e-2
    assert_close(pull(module, 1) * length, exact, atol=1e-12, rtol=0)


def exact_values(probabilities: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """What the policy itself may expect before each token of what is still to come, divergence paid."""
    logs, references = said(TablePolicy(probabilities)), REFERENCE_SAID
    second = torch.zeros(2, 2, dtype=torch.float64)
    first = torch.zeros(2, dtype=torch.float64)
    for p in range(2):
        for start in (1, 2):
            rest = [r for r in range(5) if RESPONSES[r, 0] == start]
            second[p, start - 1] = sum(logs[p][r][1].exp() * (REWARDS[p, r] - beta * (logs[p][r][1] - references[p][r][1])) for r in rest)
        for r in range(5):
            price = sum(one - other for one, other in zip(logs[p][r], references[p][r], strict=True))
            first[p] += probabilities[p, r] * (REWARDS[p, r] - beta * price)
    return first.detach(), second.detach()


@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_with_less_it_is_one_where_the_critic_is_exact_and_only_there(lam):
    length = (LATER * MASK.sum(-1)).sum(-1).mean()
    for values, holds in ((exact_values(LATER, 0.5), True), ((FIRST, SECOND), False)):
        module = PPO(TablePolicy(REFERENCE), TableCritic(*values), beta=0.5, credit=GAE(lam=lam), **PLAIN)
        module.policy.become(LATER)
        exact = gradient(module, -value(module.policy, 0.5))
        error = (pull(module, 1) * length - exact).abs().max()
        assert error < 1e-12 if holds else error > 1e-2


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_it_ends_at_the_tilted_reference(start):
    module = ppo(beta=0.5, credit=GAE(lam=1.0))
    module.policy.become(start)
    assert_close(settled(module, 1, rate=2, steps=30), normalised(REFERENCE.log() + REWARDS / 0.5), atol=1e-9, rtol=0)


def test_the_loss_of_the_critic_does_not_move_the_policy():
    near, far = (ppo(value_weight=weight) for weight in (0.1, 10.0))
    for module in (near, far):
        module.policy.become(LATER)
    assert_close(pull(near, 1), pull(far, 1))


# The published loss, written from the paper


def whitened_list(tokens: list[tuple[float, float]], shift: bool) -> list[float]:
    """From chances and values."""
    total = sum(chance for chance, _ in tokens)
    mean = sum(chance * x for chance, x in tokens) / total
    std = math.sqrt(sum(chance * (x - mean) ** 2 for chance, x in tokens) / total)
    return [(x - mean) / std + (0.0 if shift else mean) for _, x in tokens]


def test_the_published_loss_enumerated():
    """Rewards at the last token less the price of divergence at each, divided by their deviation; GAE; standardised; both clips."""
    beta, gamma, lam, clip, weight = 0.3, 0.9, 0.6, 0.1, 0.5
    options = {"whiten_rewards": True, "whiten_advantages": True, "value_clip": clip, "value_weight": weight}
    module = ppo(beta=beta, credit=GAE(gamma, lam), surrogate=Clip(0.1, 0.15), **options)
    everything = sampling_groups(1).replicated(20)  # each response as often as it is drawn, exactly
    batch = rollout_at_sampling(module, everything)
    critic = module.critic
    assert isinstance(critic, TableCritic)
    with torch.no_grad():  # it has moved too
        critic.first += torch.tensor([0.3, -0.4])
        critic.second += torch.tensor([[0.05, -0.25], [0.6, -0.02]])

    flat = []  # chance, prompt, response, place, reward
    for chance, p, (r,) in members(sampling_groups(1)):
        price = [beta * (one - other) for one, other in zip(SAMPLING_SAID[p][r], REFERENCE_SAID[p][r], strict=True)]
        flat += [(chance, p, r, t, (REWARDS[p, r].item() if t == len(price) - 1 else 0.0) - cost) for t, cost in enumerate(price)]
    rewards = dict(zip([token[1:4] for token in flat], whitened_list([(token[0], token[4]) for token in flat], shift=False), strict=True))

    def old(p: int, r: int, t: int) -> float:
        return float(FIRST[p] if t == 0 else SECOND[p, RESPONSES[r, 0] - 1])

    advantages = {}
    for _, p, r, t, _ in flat:
        ends = range(t, int(MASK[r].sum()))
        deltas = [rewards[p, r, i] + (gamma * old(p, r, i + 1) if (p, r, i + 1) in rewards else 0.0) - old(p, r, i) for i in ends]
        advantages[p, r, t] = sum((gamma * lam) ** n * delta for n, delta in enumerate(deltas))
    standard = dict(zip(advantages, whitened_list([(token[0], advantages[token[1:4]]) for token in flat], shift=True), strict=True))

    logs, total = said(module.policy), sum(token[0] for token in flat)
    loss = torch.zeros((), dtype=torch.float64)
    value_loss = torch.zeros((), dtype=torch.float64)
    cases = set()
    for chance, p, r, t, _ in flat:
        ratio, advantage = (logs[p][r][t] - SAMPLING_SAID[p][r][t]).exp(), standard[p, r, t]
        terms = [ratio * advantage, min(max(ratio, 0.9 + 0 * ratio), 1.15 + 0 * ratio) * advantage]
        loss = loss - chance / total * min(terms)
        now = critic.first[p] if t == 0 else critic.second[p, RESPONSES[r, 0] - 1]
        target, before = advantages[p, r, t] + old(p, r, t), old(p, r, t)
        bounded = before + min(max(now - before, -clip + 0 * now), clip + 0 * now)
        errors = [(now - target) ** 2, (bounded - target) ** 2]
        cases.add(("value", bool(errors[1] > errors[0]), bool(abs(now - before) > clip)))
        cases.add(("ratio", advantage > 0, bool(terms[1] < terms[0])))
        value_loss = value_loss + chance / total * weight * max(errors) / 2
    assert len(cases) == 7  # both signs on both sides of a bound; values within the clip, held by it, and free to come back
    assert_gradients_agree(module, everything, batch, loss)
    found, _, _ = expected_loss(module, everything, batch)
    for one, other in zip(*(torch.autograd.grad(x, [critic.first, critic.second]) for x in (found, value_loss)), strict=True):
        assert other.abs().max() > 1e-2
        assert_close(one, other, atol=1e-9, rtol=1e-9)


# The details, one by one


def test_the_score_is_the_last_tokens():
    returns = prepared(ppo(credit=REWARDED)).returns
    assert_close(returns[0].tolist(), [[0.0 + REWARDS[0, 0].item(), 0.0], [0.0, REWARDS[0, 1].item()], [0.0, REWARDS[0, 4].item()]])


def test_every_token_pays_for_its_divergence():
    module = ppo(credit=REWARDED, beta=0.5)
    batch = prepared(module)
    free = prepared(ppo(credit=REWARDED)).returns
    divergence = (batch.sampling_logps - batch.reference_logps).where(batch.loss_mask, 0.0)
    assert divergence.abs().min(-1).values.max() > 0.1
    assert_close(batch.returns, free - 0.5 * divergence)


def test_scores_are_centred_on_those_of_the_first_rollout_for_good():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    module = ppo(credit=REWARDED, centre=True).double()
    scores = torch.tensor([[3.0, 1.0, 99.0], [-2.0, 4.0, 0.5]], dtype=torch.float64)
    first = prepared(module, scores=scores, valid=valid).returns.sum(-1)
    mean = (3.0 + 1.0 - 2.0 + 4.0 + 0.5) / 5
    assert_close(first[valid], (scores - mean)[valid])
    second = prepared(module, scores=scores + 7).returns.sum(-1)
    assert_close(second, scores + 7 - mean)
    learnt = prepared(module, scores=scores + 7, annotator_version=1).returns.sum(-1)
    assert_close(learnt, scores - scores.mean())  # of another version, with a mean of its own


def test_a_response_that_does_not_end_has_a_score_that_is_set():
    """Whatever the annotator said, and after centring: so an average answer is worth more."""
    finished = torch.tensor([[True, False, True], [False, True, True]])
    module = ppo(credit=REWARDED, missing_eos=-1.0, centre=True).double()
    scores = torch.tensor([[3.0, 100.0, 0.0], [-200.0, 4.0, 1.0]], dtype=torch.float64)
    returns = prepared(module, scores=scores, finished=finished).returns.sum(-1)
    assert_close(returns, (scores - scores.mean()).where(finished, -1.0))
    kept = prepared(ppo(credit=REWARDED), scores=scores, finished=finished).returns.sum(-1)
    assert_close(kept, scores)


def test_rewards_are_divided_by_their_deviation_around_their_mean():
    plain, whitened = (prepared(ppo(credit=REWARDED, beta=0.5, whiten_rewards=on)) for on in (False, True))
    before, after = (batch.returns[batch.loss_mask] for batch in (plain, whitened))
    assert abs(float(before.mean())) > 0.1
    assert_close(after.mean(), before.mean())
    assert_close(after.std(correction=0), torch.ones_like(after[0]))
    assert_close((after[1:] - after[0]) * before.std(correction=0), before[1:] - before[0])


def test_advantages_have_mean_0_and_deviation_1_and_returns_are_what_they_were():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    plain, whitened = (prepared(ppo(whiten_advantages=on), valid=valid) for on in (False, True))
    tokens = whitened.advantages[whitened.loss_mask & valid.unsqueeze(-1)]
    assert_close(tokens.mean(), torch.zeros_like(tokens[0]), atol=1e-12, rtol=0)
    assert_close(tokens.std(correction=0), torch.ones_like(tokens[0]))
    assert_close(plain.returns, whitened.returns)
    assert_close(plain.returns, (plain.advantages + plain.values).where(plain.loss_mask & valid.unsqueeze(-1), 0.0))


def test_the_price_follows_a_target_and_is_in_the_state():
    module = ppo(beta=0.5, kl_target=KLTarget(nats=0.01, rate=0.2), credit=REWARDED)
    prices = []
    for _ in range(3):
        prices.append(module.prepare(drawn_by(moved_to(module, LATER), PROMPTS, GROUPS))[1]["kl/price"].item())
    assert [later / earlier for earlier, later in pairwise([0.5, *prices])] == pytest.approx([math.exp(0.2)] * 3)
    assert module.state_dict()["price_factor"].item() == pytest.approx(math.exp(0.6))


def moved_to(module: PPO, probabilities: Tensor) -> PPO:
    module.policy.become(probabilities)
    return module


def test_explained_variance_is_that_of_the_returns():
    module = ppo()
    _, diagnostics = module.prepare(batch := drawn_by(moved_to(module, LATER), PROMPTS, GROUPS))
    done = module.prepare(batch)[0]
    returns, values = (x[batch.loss_mask] for x in (done.returns, batch.values))
    expected = 1 - (returns - values).square().mean() / returns.var(correction=0)
    assert diagnostics["value/explained_variance"].item() == pytest.approx(expected.item())


def test_entropy_is_a_bonus():
    module = ppo(entropy=0.5)
    batch = prepared(module)
    output, entropy = module._forward(batch), torch.rand(2, 3, 2, dtype=torch.float64)
    plain = ppo().objective(batch, output)[0]
    assert_close(module.objective(batch, replace(output, entropy=entropy))[0], plain - 0.5 * entropy)


def test_needs_are_those_of_prices():
    assert ppo().needs == Needs(sampled=True, values=True)
    assert ppo(beta=0.1, entropy=0.1).needs == Needs(reference=True, sampled=True, values=True, entropy=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"value_clip": 0.0}, "value_clip should be a number above 0"),
        ({"value_weight": -1.0}, "value_weight should be a number above 0"),
        ({"kl_stop": 0.0}, "kl_stop should be a number above 0"),
        ({"entropy": -0.1}, "entropy should be a number of at least 0"),
        ({"beta": -0.1}, "beta should be a number of at least 0"),
        ({"beta": 0.0, "kl_target": KLTarget(1.0)}, "beta should be a number above 0"),
    ],
)
def test_numbers_of_the_wrong_sign_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        ppo(**options)


def test_credit_out_of_range_is_refused():
    for make in (lambda: GAE(gamma=1.1), lambda: GAE(lam=-0.1), lambda: MacroGAE(lam=2.0)):
        with pytest.raises(UserError, match="should be from 0 to 1"):
            make()
    with pytest.raises(UserError, match="from 1, got length = 0"):
        MacroGAE(length=0)


def test_no_critic_is_made_of_a_policy_without_a_folder():
    with pytest.raises(UserError, match="not of TablePolicy: give one, by `critic`"):
        PPO(TablePolicy(REFERENCE))
