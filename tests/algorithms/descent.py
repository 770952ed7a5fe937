"""Bringing a table to where a module's own loss sends it: one optimizer step per rollout, every rollout enumerated."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lit_align.algorithms import AlignmentModule
from tests.algorithms.worlds import REWARDS, Groups, TablePolicy, expected_loss, gradient, response_table

_AHEAD = (torch.arange(5) - torch.arange(5).unsqueeze(-1)) % 5  # by how many a response is ahead of another, round a ring
_RING = torch.where(_AHEAD <= 2, 1.0, -1.0).double().fill_diagonal_(0.0)
_GAIN = REWARDS.unsqueeze(-1) - REWARDS.unsqueeze(-2)
BEATS = (1.2 * _RING + 0.5 * _GAIN).sigmoid()  # [P, R, R]; a judge that no reward explains: each response loses to some

Label = Callable[[Groups], tuple[Groups, dict[str, Any]]]
"""From groups to groups and what is known of them besides their rewards."""


def unlabelled(groups: Groups) -> tuple[Groups, dict[str, Any]]:
    """Rewards are all there is."""
    return groups, {}


def judged(groups: Groups) -> tuple[Groups, dict[str, Any]]:
    """What the judge says of every two."""
    one, other = groups.responses.unsqueeze(-1), groups.responses.unsqueeze(-2)
    preferences = BEATS[groups.prompts.view(-1, 1, 1), one, other]
    return groups, {"preferences": preferences.diagonal_scatter(torch.full_like(preferences[..., 0], torch.nan), dim1=-2, dim2=-1)}


def sampled_labels(groups: Groups) -> tuple[Groups, dict[str, Any]]:
    """Groups of two, each once won by the first and once by the second, as often as Bradley and Terry say."""
    gain = REWARDS[groups.prompts.unsqueeze(-1), groups.responses].diff(dim=-1).squeeze(-1)
    chances = torch.cat([(-gain).sigmoid(), gain.sigmoid()]) * groups.probabilities.repeat(2)
    first = torch.tensor([[torch.nan, 1.0], [0.0, torch.nan]], dtype=torch.float64).expand(len(gain), 2, 2)
    return Groups(groups.responses.repeat(2, 1), groups.prompts.repeat(2), chances), {"preferences": torch.cat([first, first.mT])}


def pull(module: AlignmentModule, k: int, label: Label = unlabelled) -> Tensor:
    """The expected gradient of all parameters, samples being the policy's own."""
    groups, options = label(Groups.of(_table(module), k))
    return gradient(module, expected_loss(module, groups, **options)[0])


def settled(module: AlignmentModule, k: int, *, rate: float, steps: int = 40, label: Label = unlabelled) -> Tensor:
    """The policy after so many rollouts of one step each, ``[P, R]``."""
    for _ in range(steps):
        natural_step(module, pull(module, k, label), rate)
    return _table(module).probabilities


def natural_step(module: AlignmentModule, direction: Tensor, rate: float) -> None:
    """Descend along a gradient of the parameters by natural gradient: of plain steps a table would need thousands."""
    policy = _table(module)
    logps = response_table(policy)  # [P, R]
    rows = [torch.autograd.grad(logp, list(policy.parameters()), retain_graph=True) for logp in logps.flatten()]
    scores = torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])  # [P R, parameters]
    fisher = scores.T @ (logps.detach().exp().view(-1, 1) / len(logps) * scores)
    step = torch.linalg.pinv(fisher, hermitian=True, rtol=1e-12) @ direction  # pinv: logits of a state have no common height
    vector_to_parameters(parameters_to_vector(policy.parameters()).detach() - rate * step, policy.parameters())


def minimised(module: AlignmentModule, groups: Groups) -> Tensor:
    """The policy at which the expected loss of one fixed rollout is smallest, ``[P, R]``."""
    _, _, batch = expected_loss(module, groups)
    optimizer = torch.optim.LBFGS(
        module.policy.parameters(), max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-18
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = expected_loss(module, groups, batch)[0]
        loss.backward()
        return loss

    optimizer.step(closure)
    return _table(module).probabilities


def _table(module: AlignmentModule) -> TablePolicy:
    assert isinstance(module.policy, TablePolicy)
    return module.policy
