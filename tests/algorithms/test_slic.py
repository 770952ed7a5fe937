"""SLiC against an enumeration of its hinge: it has no closed form for more than two responses."""

import pytest
import torch

from lit_align.algorithms import AllPairs, BestVersusWorst, SLiC
from tests.algorithms.published import REFERENCE_SAID, assert_gradients_agree, members, rollout_at_sampling, said, sampling_groups
from tests.algorithms.worlds import REFERENCE, REWARDS, TablePolicy, drawn_by, gradient, normalised

BETA = 0.8


def extremes(group, reward):
    return [(max(group, key=reward.__getitem__), min(group, key=reward.__getitem__))]


def everything(group, reward):
    return [(one, other) for one in group for other in group if reward[one] > reward[other]]


@pytest.mark.parametrize(
    ("pairing", "choose"), [(BestVersusWorst(), extremes), (AllPairs(), everything)], ids=["best against worst", "all pairs"]
)
@pytest.mark.parametrize("soft", [False, True])
def test_the_hinge_enumerated(pairing, choose, soft):
    module, groups = SLiC(TablePolicy(REFERENCE), beta=BETA, pairing=type(pairing)(soft=soft)), sampling_groups(3)
    batch = rollout_at_sampling(module, groups)
    logs, total, count, settled = said(module.policy), torch.zeros((), dtype=torch.float64), 0.0, 0
    for chance, p, group in members(groups):
        reward = REWARDS[p].tolist()
        for won, lost in choose(group, reward):
            if won == lost:
                continue
            ahead = [sum(logs[p][r]) - sum(REFERENCE_SAID[p][r]) for r in (won, lost)]
            margin = BETA * (ahead[0] - ahead[1])
            sure = 1 / (1 + 2.718281828459045 ** (reward[lost] - reward[won])) if soft else 1.0
            settled += bool(margin > 1)
            loss = sure * max(1 - margin, 0 * margin) + (1 - sure) * max(1 + margin, 0 * margin)
            total, count = total + chance * loss, count + chance
    assert settled > 0  # both sides of the hinge are in it
    assert_gradients_agree(module, groups, batch, total / count)


def test_two_responses_rest_where_the_margin_is_reached():
    module = SLiC(TablePolicy(REFERENCE), beta=BETA)
    batch, _ = module.prepare(drawn_by(module, torch.tensor([0]), torch.tensor([[3, 4]])))
    for margin, moving in ((0.99 / BETA, True), (1.01 / BETA, False)):
        module.policy.become(normalised(REFERENCE.log() + torch.tensor([0.0, 0.0, 0.0, 0.0, margin], dtype=torch.float64)))
        losses, _ = module.objective(batch, module.policy(batch))
        assert bool(gradient(module, losses[0, 1, 0]).abs().max() > 1e-2) == moving
