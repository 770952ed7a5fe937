"""ORPO against an enumeration of its equations 4 to 7."""

import torch

from lit_align.algorithms import ORPO
from lit_align.types import Needs
from tests.algorithms.published import assert_gradients_agree, members, rollout_at_sampling, said, sampling_groups
from tests.algorithms.worlds import REFERENCE, REWARDS, TablePolicy


def test_the_published_loss_enumerated():
    module, groups = ORPO(TablePolicy(REFERENCE), odds=0.7), sampling_groups(3)
    batch = rollout_at_sampling(module, groups)
    logs, total, count = said(module.policy), torch.zeros((), dtype=torch.float64), 0.0
    for chance, p, group in members(groups):
        won, lost = (choose(group, key=REWARDS[p].tolist().__getitem__) for choose in (max, min))
        if won != lost:
            likely = [(sum(logs[p][r]) / len(logs[p][r])).exp() for r in (won, lost)]
            odds = [q / (1 - q) for q in likely]
            total += chance * (-likely[0].log() - 0.7 * (1 / (1 + odds[1] / odds[0])).log())
            count += chance
    assert_gradients_agree(module, groups, batch, total / count)


def test_it_needs_no_reference():
    assert ORPO(TablePolicy(REFERENCE)).needs == Needs(responses=2)
