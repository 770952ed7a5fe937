"""Iterative SFT: a round is the law of the best of K, and rounds end at the best response there is."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import Above, IterativeSFT, best_of_group
from lit_align.types import Needs
from tests.algorithms.descent import minimised
from tests.algorithms.worlds import REFERENCE, REWARDS, SAMPLING, STARTS, Groups, TablePolicy, drawn_by, fitted, make_batch


def make(now=REFERENCE, **options):
    module = IterativeSFT(TablePolicy(REFERENCE), **options)
    module.policy.become(now)
    return module


def best_of(k, policy=SAMPLING):
    """How often each response is the best of K that are not all the same, from the distribution of rewards, ``[P, R]``."""
    below = (policy.unsqueeze(-2) * (REWARDS.unsqueeze(-2) < REWARDS.unsqueeze(-1))).sum(-1)  # P(a sample scores less)
    law = (below + policy) ** k - below**k - policy**k
    return law / law.sum(-1, keepdim=True)


@pytest.mark.parametrize("k", [2, 4])
def test_a_fitted_round_is_the_best_of_k(k):
    module = make(SAMPLING)
    assert_close(fitted(module, Groups.of(module.policy, k)), best_of(k), atol=1e-12, rtol=0)


def test_descending_the_loss_reaches_it():
    module = make(SAMPLING)
    worst = REWARDS.argmin(-1, keepdim=True)  # which is never the best, so no finite logits give it its share, 0
    assert_close(minimised(module, Groups.of(module.policy, 2)), best_of(2).scatter(-1, worst, 0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_rounds_end_at_the_best_response(start):
    module = make(start)
    for _ in range(5):
        module.policy.become(fitted(module, Groups.of(module.policy, 3)))
    assert_close(module.policy.probabilities, torch.nn.functional.one_hot(REWARDS.argmax(-1), 5).double(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("k", [1, 2])
def test_above_a_threshold_a_round_is_the_policy_given_that_it_is_good(k):
    module = make(SAMPLING, select=Above(0.4))
    good = SAMPLING.where(REWARDS >= 0.4, 0.0)
    assert_close(fitted(module, Groups.of(module.policy, k)), good / good.sum(-1, keepdim=True), atol=1e-12, rtol=0)


def test_below_any_score_it_is_imitation_of_ones_own_samples():
    module = make(SAMPLING, select=Above(-torch.inf))
    assert_close(fitted(module, Groups.of(module.policy, 1)), SAMPLING, atol=1e-12, rtol=0)


def test_the_loss_is_the_mean_over_what_was_selected():
    module = make(SAMPLING)
    batch, diagnostics = module.prepare(drawn_by(module, torch.tensor([0, 1, 1]), torch.tensor([[1, 4], [2, 2], [3, 1]])))
    assert batch.valid.tolist() == [[True, False], [False, False], [False, True]]
    assert diagnostics["selection/per_prompt"].tolist() == [1, 0, 1]
    losses, _ = module.objective(batch, module.policy(batch))
    assert_close(losses[batch.valid].detach(), -SAMPLING.log()[[0, 1], [1, 1]])


def test_selection_looks_at_valid_scores_only():
    scores = torch.tensor([[9.0, 1.0, 2.0], [9.0, 1.0, 9.0], [torch.nan, 3.0, 3.0]])
    valid = torch.tensor([[False, True, True], [False, True, False], [False, True, True]])
    assert best_of_group(scores, valid).tolist() == [[False, False, True], [False] * 3, [False] * 3]
    assert Above(1.5)(scores, valid).tolist() == [[False, False, True], [False] * 3, [False, True, True]]
    assert Above(3.0)(scores, valid).tolist()[2] == [False, True, True]  # at least


def test_needs_are_those_of_the_selection():
    assert make().needs == Needs(responses=2)
    assert make(select=Above(0.0)).needs == Needs()
    assert make(select=Above(0.0)).prepare(make_batch(torch.tensor([0]), torch.tensor([[1]])))[0].valid.all()
