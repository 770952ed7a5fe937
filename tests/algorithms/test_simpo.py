"""SimPO against an enumeration of its equation 6."""

import pytest
import torch

from lit_align.algorithms import SimPO
from lit_align.types import Needs
from tests.algorithms.published import assert_gradients_agree, members, rollout_at_sampling, said, sampling_groups
from tests.algorithms.worlds import REFERENCE, REWARDS, TablePolicy


@pytest.mark.parametrize(("beta", "gamma"), [(2.0, 1.0), (2.5, 0.0)])
def test_the_published_loss_enumerated(beta, gamma):
    module, groups = SimPO(TablePolicy(REFERENCE), beta=beta, gamma=gamma), sampling_groups(3)
    batch = rollout_at_sampling(module, groups)
    logs, total, count = said(module.policy), torch.zeros((), dtype=torch.float64), 0.0
    for chance, p, group in members(groups):
        won, lost = (choose(group, key=REWARDS[p].tolist().__getitem__) for choose in (max, min))
        if won != lost:
            per_token = [sum(logs[p][r]) / len(logs[p][r]) for r in (won, lost)]
            total += chance * (1 + (-(beta * per_token[0] - beta * per_token[1] - gamma)).exp()).log()
            count += chance
    assert_gradients_agree(module, groups, batch, total / count)


def test_it_needs_no_reference():
    assert SimPO(TablePolicy(REFERENCE)).needs == Needs(responses=2)
