"""What an enumeration written from a paper starts with: the log-probs of single tokens, read off the table without the module."""

from collections.abc import Iterator

import torch
from torch import Tensor

from lit_align.algorithms import AlignmentModule
from lit_align.types import AlignmentBatch
from tests.algorithms.worlds import LATER, MASK, REFERENCE, RESPONSES, SAMPLING, Groups, TablePolicy, expected_loss, gradient

Said = list[list[list[Tensor]]]
"""Log-probs of the tokens of response ``r`` to prompt ``p``: ``said[p][r]``."""


def said(policy: TablePolicy) -> Said:
    """With gradient."""

    def tokens(prompt: int, response: int) -> list[Tensor]:
        first, second = RESPONSES[response].tolist()
        start = policy.first[prompt]
        logs = [start[first] - start.logsumexp(0)]
        if MASK[response, 1]:
            after = policy.second[prompt, first - 1]
            logs.append(after[second] - after.logsumexp(0))
        return logs

    return [[tokens(p, r) for r in range(len(RESPONSES))] for p in range(len(policy.first))]


def said_by(probabilities: Tensor) -> list[list[list[float]]]:
    """Of a policy that gives every response this probability, as numbers."""
    return [[[float(token.detach()) for token in tokens] for tokens in row] for row in said(TablePolicy(probabilities))]


REFERENCE_SAID, SAMPLING_SAID = said_by(REFERENCE), said_by(SAMPLING)


def members(groups: Groups) -> Iterator[tuple[float, int, list[int]]]:
    """Chance, prompt and responses of every group."""
    yield from zip(groups.probabilities.tolist(), groups.prompts.tolist(), groups.responses.tolist(), strict=True)


def rollout_at_sampling(module: AlignmentModule, groups: Groups) -> AlignmentBatch:
    """These groups as prepared while the policy was ``SAMPLING``; then the policy moves on to ``LATER``."""
    policy = module.policy
    assert isinstance(policy, TablePolicy)
    policy.become(SAMPLING)
    _, _, batch = expected_loss(module, groups)
    policy.become(LATER)
    return batch


def sampling_groups(k: int) -> Groups:
    """What ``SAMPLING`` draws."""
    return Groups.of(TablePolicy(SAMPLING), k)


def assert_gradients_agree(module: AlignmentModule, groups: Groups, batch: AlignmentBatch, published: Tensor) -> None:
    """The gradient of the module's expected loss is that of the published one, and is one."""
    expected = gradient(module, published)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(gradient(module, expected_loss(module, groups, batch)[0]), expected, atol=1e-9, rtol=1e-9)
