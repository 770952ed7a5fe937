"""REINFORCE++: plain REINFORCE without its whitening, and the published loss with it."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import BatchMean, Clip, ReinforcePP, group_centred
from lit_align.types import Needs
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
from tests.algorithms.worlds import LATER, MASK, REFERENCE, REWARDS, STARTS, TablePolicy, drawn_by, gradient, normalised, value


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_without_whitening_the_expected_gradient_is_reinforces(beta):
    """Up to the mean length, as the mean is over tokens. That a token answers for later divergence only costs nothing in the mean."""
    module = ReinforcePP(TablePolicy(REFERENCE), beta=beta, whiten=False)
    module.policy.become(LATER)
    length = (LATER * MASK.sum(-1)).sum(-1).mean()
    exact = gradient(module, -value(module.policy, beta))
    assert exact.abs().max() > 1e-2
    assert_close(pull(module, 1) * length, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_without_whitening_it_ends_at_the_tilted_reference(start):
    module = ReinforcePP(TablePolicy(REFERENCE), beta=0.5, whiten=False)
    module.policy.become(start)
    assert_close(settled(module, 1, rate=2, steps=30), normalised(REFERENCE.log() + REWARDS / 0.5), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("baseline", "k"), [(None, 1), (group_centred, 2), (BatchMean(), 2)], ids=["none", "group", "batch"])
def test_the_published_loss_enumerated(baseline, k):
    """Sections 3.1 and 3.2: returns less the divergence to go, standardised over all tokens; PPO's clip; the mean over tokens."""
    beta, low, high = 0.3, 0.1, 0.15
    module = ReinforcePP(TablePolicy(REFERENCE), beta=beta, baseline=baseline, surrogate=Clip(low, high))
    everything = sampling_groups(k).replicated(20**k)  # each group as often as it is drawn, exactly
    batch = rollout_at_sampling(module, everything)

    mean_reward = sum(chance / 2 * REWARDS[p, r].item() / k for chance, p, group in members(sampling_groups(k)) for r in group)
    tokens = []  # chance, prompt, response, place, return
    for chance, p, group in members(sampling_groups(k)):
        group_mean = sum(REWARDS[p, r].item() for r in group) / k
        off = {None: 0.0, group_centred: group_mean, BatchMean(): mean_reward}[baseline]
        for r in group:
            divergence = [one - other for one, other in zip(SAMPLING_SAID[p][r], REFERENCE_SAID[p][r], strict=True)]
            for t in range(len(divergence)):
                tokens.append((chance, p, r, t, REWARDS[p, r].item() - off - beta * sum(divergence[t:])))
    total = sum(chance for chance, *_ in tokens)
    mean = sum(chance * worth for chance, *_, worth in tokens) / total
    std = math.sqrt(sum(chance * (worth - mean) ** 2 for chance, *_, worth in tokens) / total)

    logs, loss, clipped = said(module.policy), torch.zeros((), dtype=torch.float64), set()
    for chance, p, r, t, worth in tokens:
        advantage, ratio = (worth - mean) / std, (logs[p][r][t] - SAMPLING_SAID[p][r][t]).exp()
        terms = [ratio * advantage, min(max(ratio, 1 - low + 0 * ratio), 1 + high + 0 * ratio) * advantage]
        clipped.add((advantage > 0, bool(terms[1] < terms[0])))
        loss = loss - chance / total * min(terms)
    assert len(clipped) == 4  # both signs, on both sides of a bound
    assert_gradients_agree(module, everything, batch, loss)


def test_a_token_answers_for_the_divergence_from_itself_on():
    module = ReinforcePP(TablePolicy(REFERENCE), beta=0.5, whiten=False)
    module.policy.become(LATER)
    batch, _ = module.prepare(drawn_by(module, torch.tensor([1]), torch.tensor([[3]])))
    first, second = (batch.sampling_logps - batch.reference_logps)[0, 0].tolist()
    reward = REWARDS[1, 3].item()
    assert batch.advantages[0, 0].tolist() == pytest.approx([reward - 0.5 * (first + second), reward - 0.5 * second])


def test_whitened_advantages_have_mean_0_and_deviation_1_over_valid_tokens():
    module = ReinforcePP(TablePolicy(REFERENCE), beta=0.1)
    valid = torch.tensor([[True, True, False], [True, True, True]])
    batch, _ = module.prepare(drawn_by(module, torch.tensor([0, 1]), torch.tensor([[0, 1, 4], [2, 3, 0]]), valid=valid))
    tokens = batch.advantages[batch.loss_mask & valid.unsqueeze(-1)]
    assert len(tokens) == 8
    assert_close(tokens.mean(), torch.zeros_like(tokens[0]))
    assert_close(tokens.std(correction=0), torch.ones_like(tokens[0]))


def test_where_siblings_are_compared_a_lone_response_teaches_nothing():
    prompts, responses = torch.tensor([0, 1]), torch.tensor([[0, 1], [2, 3]])
    valid = torch.tensor([[True, True], [True, False]])
    for baseline, kept in ((group_centred, [[True, True], [False, False]]), (None, valid.tolist()), (BatchMean(), valid.tolist())):
        module = ReinforcePP(TablePolicy(REFERENCE), baseline=baseline)
        assert module.prepare(drawn_by(module, prompts, responses, valid=valid))[0].valid.tolist() == kept


def test_needs_are_those_of_price_and_baseline():
    assert ReinforcePP(TablePolicy(REFERENCE)).needs == Needs(reference=True, sampled=True)
    assert ReinforcePP(TablePolicy(REFERENCE), beta=0.0, baseline=BatchMean()).needs == Needs(sampled=True)
    assert ReinforcePP(TablePolicy(REFERENCE), beta=0.0, baseline=group_centred).needs == Needs(responses=2, sampled=True)
