"""GRPO and its descendants, as their files have them, against enumerations of their equations; and the one that has a closed form."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import (
    CISPO,
    GRPO,
    Clip,
    OverlongPenalty,
    SequenceClip,
    SumOver,
    group_centred,
    group_standardised,
    leave_one_out,
    mean_per_response,
    token_mean,
)
from lit_align.functional import clipped_surrogate
from tests.algorithms.descent import pull, settled, unlabelled
from tests.algorithms.published import (
    REFERENCE_SAID,
    SAMPLING_SAID,
    assert_gradients_agree,
    members,
    rollout_at_sampling,
    said,
    sampling_groups,
)
from tests.algorithms.worlds import LATER, REFERENCE, REWARDS, STARTS, TablePolicy, gradient, value

# The published losses, written from their papers: a response's token log-probs, now and when it was drawn, and its advantage, to the
# losses of its tokens. ``bounds`` are those of the ratio.


def clipped(now, then, advantage, bounds):
    """DeepSeekMath, equation 3; DAPO, equation 8."""
    for new, old in zip(now, then, strict=True):
        ratio = (new - old).exp()
        yield -min(ratio * advantage, min(max(ratio, bounds[0] + 0 * ratio), bounds[1] + 0 * ratio) * advantage)


def sequence_clipped(now, then, advantage, bounds):
    """GSPO, equations 5 to 7; every token of a response gets its loss, of which the mean is taken."""
    ratio = ((sum(now) - sum(then)) / len(now)).exp()
    for _ in now:
        yield -min(ratio * advantage, min(max(ratio, bounds[0] + 0 * ratio), bounds[1] + 0 * ratio) * advantage)


def weighted(now, then, advantage, bounds):
    """MiniMax-M1, equations 4 and 5."""
    for new, old in zip(now, then, strict=True):
        yield -min(max(math.exp(float(new.detach()) - old), bounds[0]), bounds[1]) * advantage * new


def standardised(rewards):
    mean = sum(rewards) / len(rewards)
    std = math.sqrt(sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1))
    return [(r - mean) / (std + 1e-4) for r in rewards]


def centred(rewards):
    return [r - sum(rewards) / len(rewards) for r in rewards]


def dapo_overlong(length):
    """DAPO, equation 13, with a cache of 2 below a longest response of 3."""
    return 0.0 if length <= 1 else (1 - length) / 2


VARIANTS = {
    "grpo": ({"beta": 0.3, "surrogate": Clip(0.2, 0.2)}, standardised, clipped, (0.8, 1.2), "response", 0.3),
    "dr_grpo": (
        {"advantage": group_centred, "surrogate": Clip(0.2, 0.2), "normaliser": SumOver(5.0), "beta": 0.0},
        centred,
        clipped,
        (0.8, 1.2),
        "constant",
        0.0,
    ),
    "dapo": (
        {"surrogate": Clip(0.2, 0.28), "normaliser": token_mean, "beta": 0.0, "overlong": OverlongPenalty(longest=3, cache=2)},
        standardised,
        clipped,
        (0.8, 1.28),
        "tokens",
        0.0,
    ),
    "gspo": ({"surrogate": SequenceClip(0.1, 0.15), "beta": 0.0}, standardised, sequence_clipped, (0.9, 1.15), "response", 0.0),
    "cispo": (
        {"surrogate": CISPO(0.2, 0.3), "normaliser": token_mean, "beta": 0.0},
        standardised,
        weighted,
        (0.8, 1.3),
        "tokens",
        0.0,
    ),
}


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("name", VARIANTS)
def test_the_published_loss_enumerated(name, k):
    options, advantages, token_losses, bounds, mean_over, beta = VARIANTS[name]
    module, groups = GRPO(TablePolicy(REFERENCE), **options), sampling_groups(k)
    batch = rollout_at_sampling(module, groups)
    logs, total, count = said(module.policy), torch.zeros((), dtype=torch.float64), 0.0
    for chance, p, group in members(groups):
        lengths = [len(logs[p][r]) for r in group]
        rewards = [REWARDS[p, r].item() + (dapo_overlong(n) if name == "dapo" else 0.0) for r, n in zip(group, lengths, strict=True)]
        for r, advantage, length in zip(group, advantages(rewards), lengths, strict=True):
            losses = list(token_losses(logs[p][r], SAMPLING_SAID[p][r], advantage, bounds))
            for new, ref, t in zip(logs[p][r], REFERENCE_SAID[p][r], range(length), strict=True):
                losses[t] = losses[t] + beta * ((ref - new).exp() - (ref - new) - 1)
            divided_by = {"response": length, "constant": 5, "tokens": 1}[mean_over]
            total = total + chance * sum(losses) / divided_by
            count += chance * (length if mean_over == "tokens" else 1)
    assert_gradients_agree(module, groups, batch, total / count)


@pytest.mark.parametrize("name", VARIANTS)
def test_bounds_matter_in_that_world(name):
    """Without them the gradient is another one."""
    options = VARIANTS[name][0]
    free = options | {"surrogate": type(options["surrogate"])(1.0, 1e6)}
    gradients = []
    for setting in (options, free):
        module, groups = GRPO(TablePolicy(REFERENCE), **setting), sampling_groups(3)
        batch = rollout_at_sampling(module, groups)
        losses, diagnostics = module.objective(batch, module.policy(batch))
        chances = groups.probabilities.view(-1, *[1] * (losses.dim() - 1))
        gradients.append(gradient(module, (chances * losses.where(batch.loss_mask if losses.dim() == 3 else batch.valid, 0.0)).sum()))
        assert (diagnostics["ratio/clipped_fraction"] > 0).any() == (setting is options)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[1].norm()


# On policy


@pytest.mark.parametrize("surrogate", [Clip(), SequenceClip(), CISPO()], ids=["clip", "sequence", "cispo"])
@pytest.mark.parametrize("k", [2, 3])
def test_before_the_first_step_all_surrogates_give_the_policy_gradient(surrogate, k):
    """Of rewards weaker by (K - 1) / K, as the group's mean is the baseline."""
    module = GRPO(TablePolicy(REFERENCE), advantage=group_centred, surrogate=surrogate, normaliser=SumOver(1.0), beta=0.0)
    module.policy.become(LATER)
    exact = gradient(module, -value(module.policy, 0.0))
    assert exact.abs().max() > 1e-2
    assert_close(pull(module, k), exact * (k - 1) / k, atol=1e-12, rtol=0)


# Closed form: no standard deviation, sums over tokens, k3 in the loss

BETA = 4.0
OF_FIRST_TOKEN = REWARDS[:, [0, 1, 1, 3, 3]]  # nothing depends on the second


def rewarded_by(rewards, groups):
    return groups, {"scores": rewards[groups.prompts.unsqueeze(-1), groups.responses]}


def anchored(advantage, start):
    module = GRPO(TablePolicy(REFERENCE), advantage=advantage, normaliser=SumOver(1.0), beta=BETA)
    module.policy.become(start)
    return module


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize(("advantage", "k", "strength"), [(leave_one_out, 2, 1.0), (group_centred, 2, 0.5), (group_centred, 3, 2 / 3)])
def test_it_ends_at_a_hyperbola_of_the_advantage(advantage, k, strength, start):
    """``pi_ref / (1 - (r - E_pi r) / beta)``, where the reward is that of the first token."""
    end = settled(anchored(advantage, start), k, rate=0.2, steps=30, label=partial(rewarded_by, OF_FIRST_TOKEN))
    gain = strength * (OF_FIRST_TOKEN - (end * OF_FIRST_TOKEN).sum(-1, keepdim=True))
    assert_close(end, REFERENCE / (1 - gain / BETA), atol=1e-6, rtol=0)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_in_general_the_closed_form_is_that_of_every_token(start):
    """As k3 is of tokens, and no token answers for the divergence of later ones: with Q the expected reward after it, V before."""
    end = settled(anchored(leave_one_out, start), 2, rate=0.2, steps=30, label=unlabelled)

    def by_state(policy):
        first = torch.stack([policy[:, 0], policy[:, 1:3].sum(-1), policy[:, 3:].sum(-1)], -1)
        return first, policy[:, 1:].view(2, 2, 2) / first[:, 1:].unsqueeze(-1)

    first, second = by_state(end)
    first_reference, second_reference = by_state(REFERENCE)
    worth = REWARDS[:, 1:].view(2, 2, 2)
    state = (second * worth).sum(-1)  # V after the first token
    worth_of_first = torch.cat([REWARDS[:, :1], state], -1)
    start_of_all = (first * worth_of_first).sum(-1, keepdim=True)
    assert_close(second, second_reference / (1 - (worth - state.unsqueeze(-1)) / BETA), atol=1e-6, rtol=0)
    assert_close(first, first_reference / (1 - (worth_of_first - start_of_all) / BETA), atol=1e-6, rtol=0)
    whole = REFERENCE / (1 - (REWARDS - (end * REWARDS).sum(-1, keepdim=True)) / BETA)
    assert (end - whole).abs().max() > 1e-3  # so that of whole responses misses it


# Parts


def test_the_overlong_penalty_is_of_the_score_and_so_of_the_group():
    module = GRPO(TablePolicy(REFERENCE), advantage=group_centred, overlong=OverlongPenalty(longest=2, cache=1, weight=0.5), beta=0.0)
    plain = GRPO(TablePolicy(REFERENCE), advantage=group_centred, beta=0.0)
    groups = sampling_groups(2)
    penalised, unpenalised = (rollout_at_sampling(one, groups).advantages for one in (module, plain))
    long = -0.5 * (groups.responses > 0).double()  # all but the response of one token
    assert_close(penalised - unpenalised, long - long.mean(-1, keepdim=True))


def test_the_parts_of_the_default_are_the_papers():
    module = GRPO(TablePolicy(REFERENCE))
    assert (module.advantage, module.surrogate, module.normaliser, module.beta) == (
        group_standardised,
        clipped_surrogate,
        mean_per_response,
        0.04,
    )
