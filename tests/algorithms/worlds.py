"""A world small enough to enumerate: five responses of one or two tokens to each of two prompts, and a policy that is a table.

Responses are drawn in groups of K; every group that can be drawn is a row of the batch, weighted by its exact probability, so a
loss over the batch is an expectation without sampling error. Everything is float64.
"""

import math
from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import Any, final

import torch
from torch import Tensor, nn

from lit_align.algorithms import DAR, AlignmentModule
from lit_align.algorithms.reduction import counted
from lit_align.types import AlignmentBatch, Critic, Policy, PolicyOutput, Prompt, Reference, Rollouts
from tests.tiny import sgd

RESPONSES = torch.tensor([[0, 0], [1, 0], [1, 1], [2, 0], [2, 1]])  # [R, T]; 0 as the first token ends the response
MASK = torch.tensor([[True, False], [True, True], [True, True], [True, True], [True, True]])
REWARDS = torch.tensor([[0.0, 1.0, -0.5, 0.3, 0.8], [2.0, 0.5, 0.0, -1.0, 0.4]], dtype=torch.float64)  # [P, R]
REFERENCE = torch.tensor([[0.3, 0.1, 0.25, 0.2, 0.15], [0.1, 0.3, 0.2, 0.35, 0.05]], dtype=torch.float64)
SAMPLING = torch.tensor([[0.15, 0.3, 0.2, 0.1, 0.25], [0.25, 0.15, 0.1, 0.2, 0.3]], dtype=torch.float64)  # of some later rollout
LATER = torch.tensor([[0.08, 0.27, 0.35, 0.12, 0.18], [0.4, 0.05, 0.15, 0.3, 0.1]], dtype=torch.float64)  # after some steps on it
STARTS = {"reference": REFERENCE, "elsewhere": SAMPLING}  # from which an optimum is to be reached


@final
class TablePolicy(Policy):
    """Logits of the first token ``[P, 3]``, and of the second after first tokens 1 and 2, ``[P, 2, 2]``. A prompt is one token, its
    number."""

    def __init__(self, probabilities: Tensor) -> None:
        super().__init__()
        self.temperature, self.eos_ids, self.pad_id, self.context_length = 1.0, frozenset({0}), 0, None
        self.first = nn.Parameter(torch.zeros(len(probabilities), 3, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(len(probabilities), 2, 2, dtype=torch.float64))
        self.start = probabilities
        self.become(probabilities)

    @torch.no_grad()
    def become(self, probabilities: Tensor) -> None:
        """Give every response this probability, ``[P, R]``."""
        logs = probabilities.clamp(min=1e-300).log()
        pairs = logs[:, 1:].view(-1, 2, 2)
        self.second.copy_(pairs)
        self.first.copy_(torch.cat([logs[:, :1], pairs.logsumexp(-1)], 1))

    @property
    def probabilities(self) -> Tensor:
        """Of every response, ``[P, R]``."""
        return response_table(self).exp().detach()

    def forward(self, batch: AlignmentBatch | Rollouts, vocabulary: bool = False, entropy: bool = False) -> PolicyOutput:
        prompts, tokens = batch.prompt_tokens[:, -1], batch.response_tokens  # [B], [B, K, T]
        first = self.first.log_softmax(-1)[prompts].gather(-1, tokens[..., 0])  # [B, K]
        before, index = (tokens[..., 0] - 1).clamp(min=0), prompts.unsqueeze(-1)
        second = self.second.log_softmax(-1)[index, before, tokens[..., -1]]  # some number where nothing follows
        said = torch.stack([first, second], -1)[..., : tokens.shape[-1]].where(batch.response_mask.any(-1, keepdim=True), 0.0)
        if not vocabulary:
            return PolicyOutput(token_logps=said)
        never = said.new_full((*tokens.shape[:2], 1), -torch.inf)  # token 2 in the second place
        start = self.first.log_softmax(-1)[prompts].unsqueeze(1).expand(*tokens.shape[:2], -1)
        after = torch.cat([self.second.log_softmax(-1)[index, before], never], -1)
        return PolicyOutput(token_logps=said, vocabulary_logps=torch.stack([start, after], -2)[:, :, : tokens.shape[-1]])

    def make_reference(self) -> "TableReference":
        return TableReference(TablePolicy(self.start))

    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        raise NotImplementedError

    def encode(self, prompt: Prompt) -> list[int]:
        raise NotImplementedError

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        raise NotImplementedError

    def encode_turns(self, prompt: Prompt, turns: Any) -> tuple[list[int], list[bool]]:
        raise NotImplementedError

    def decode(self, tokens: Any) -> str:
        raise NotImplementedError

    def save(self, folder: str) -> None:
        raise NotImplementedError


@final
class TableReference(Reference):
    def __init__(self, policy: TablePolicy) -> None:
        self.policy = policy

    @torch.no_grad()
    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        return self.policy(batch).token_logps.where(batch.response_mask, 0.0)

    @torch.no_grad()
    def vocabulary_logps(self, batch: AlignmentBatch) -> Tensor:
        table = self.policy(batch, vocabulary=True).vocabulary_logps
        assert table is not None
        return table


@final
class TableCritic(Critic):
    """A value before the first token ``[P]``, and one before the second after first tokens 1 and 2, ``[P, 2]``."""

    def __init__(self, first: Tensor, second: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(first.clone()), nn.Parameter(second.clone())

    def forward(self, batch: AlignmentBatch) -> Tensor:
        prompts, tokens = batch.prompt_tokens, batch.response_tokens  # [B, 1], [B, K, T]
        first = self.first[prompts].expand(tokens.shape[:2])
        second = self.second[prompts, (tokens[..., 0] - 1).clamp(min=0)]
        return torch.stack([first, second], -1)[..., : tokens.shape[-1]]

    def check(self, policy: Policy) -> None:
        pass


def response_table(policy: TablePolicy) -> Tensor:
    """Log-probs of every response to every prompt, with gradient, ``[P, R]``."""
    prompts = torch.arange(len(policy.first))
    batch = make_batch(prompts, torch.arange(len(RESPONSES)).expand(len(prompts), -1))
    return policy(batch).token_logps.where(MASK, 0.0).sum(-1)


def make_batch(prompts: Tensor, responses: Tensor, **options: Any) -> AlignmentBatch:
    """Responses number ``[B, K]`` to prompts number ``[B]``; scores are the world's rewards."""
    scores = REWARDS[prompts.unsqueeze(-1), responses]
    mask = MASK[responses]
    defaults = {
        "prompt_tokens": prompts.unsqueeze(-1),
        "prompt_mask": torch.ones(len(prompts), 1, dtype=torch.bool),
        "response_tokens": RESPONSES[responses],
        "response_mask": mask,
        "loss_mask": mask,
        "prompt_ids": prompts,
        "scores": scores,
        "valid": torch.ones_like(scores, dtype=torch.bool),
        "finished": torch.ones_like(scores, dtype=torch.bool),
        "optimizer_steps": torch.zeros_like(prompts),
        "response_normaliser": torch.tensor(float(scores.numel())),
        "token_normaliser": mask.sum().double(),
    }
    return AlignmentBatch(**(defaults | options))


def drawn_by(module: AlignmentModule, prompts: Tensor, responses: Tensor, **options: Any) -> AlignmentBatch:
    """The same, as if ``module.policy`` had just drawn them, with log-probs of the reference."""
    batch = make_batch(prompts, responses, **options)
    with torch.no_grad():
        logps = module.policy(batch).token_logps.where(batch.response_mask, 0.0)
        if module.needs.values:
            options |= {"values": module._values(batch).where(batch.response_mask, 0.0)}
    return make_batch(
        prompts, responses, sampling_logps=logps, reference_logps=module.policy.make_reference().token_logps(batch), **options
    )


@dataclass(frozen=True)
class Groups:
    """Every group of K responses that can be drawn, in any one order, with its probability."""

    responses: Tensor  # [B, K]
    prompts: Tensor  # [B]
    probabilities: Tensor  # [B]; they sum to 1 for each prompt

    @classmethod
    def of(cls, policy: TablePolicy, k: int) -> "Groups":
        groups = list(combinations_with_replacement(range(len(RESPONSES)), k))
        orders = [math.lgamma(k + 1) - sum(math.lgamma(n + 1) for n in Counter(group).values()) for group in groups]
        responses, logs = torch.tensor(groups), policy.probabilities.log()  # [G, K], [P, R]
        chances = (logs[:, responses].sum(-1) + torch.tensor(orders, dtype=torch.float64)).exp()  # [P, G]
        prompts = torch.arange(len(logs)).repeat_interleave(len(groups))
        return cls(responses.repeat(len(logs), 1), prompts, chances.flatten())

    def replicated(self, rows: int) -> "Groups":
        """Each group as often as it is drawn in ``rows`` tries per prompt, up to rounding: for what looks at a batch without
        knowing of probabilities, such as its standard deviation."""
        times = (self.probabilities * rows).round().long()
        return Groups(
            self.responses.repeat_interleave(times, 0),
            self.prompts.repeat_interleave(times),
            torch.ones(int(times.sum()), dtype=torch.float64) / rows,
        )


def make_module(start: Tensor = REFERENCE, now: Tensor | None = None, **options: Any) -> DAR:
    """DAR on a table: ``start`` is the reference, ``now`` what has been reached."""
    policy = TablePolicy(start)
    if now is not None:
        policy.become(now)
    return DAR(policy, **({"optimizer": sgd()} | options))


def expected_loss(
    module: AlignmentModule, groups: Groups, batch: AlignmentBatch | None = None, **options: Any
) -> tuple[Tensor, PolicyOutput, AlignmentBatch]:
    """What the module minimises over optimizer steps of many prompts: the mean over what it counts (responses, tokens or pairs).
    ``batch`` is as prepared in an earlier call, ``options`` are fields of a new one."""
    if batch is None:
        batch, _ = module.prepare(drawn_by(module, groups.prompts, groups.responses, **options))
    output = module._forward(batch)
    losses, _ = module.objective(batch, output)
    chances = groups.probabilities.view(-1, *[1] * (losses.dim() - 1)).where(counted(losses, batch), 0.0)
    return (chances * losses.where(chances > 0, 0.0)).sum() / chances.sum(), output, batch


def fitted(module: AlignmentModule, groups: Groups, **options: Any) -> Tensor:
    """The policy that minimises the expected loss of a weighted imitation, ``[P, R]``: each response as likely as its share of
    the weight. The weight is read off the module's own loss, as its derivative by the response's log-prob."""
    loss, output, _ = expected_loss(module, groups, **options)
    (slope,) = torch.autograd.grad(loss, output.token_logps)
    totals = torch.zeros_like(REWARDS).index_put_((groups.prompts.unsqueeze(-1), groups.responses), -slope[..., 0], accumulate=True)
    return totals / totals.sum(-1, keepdim=True)


def value(policy: TablePolicy, price: float, towards: Tensor = REFERENCE, rewards: Tensor = REWARDS) -> Tensor:
    """``E[r] - price KL(pi || towards)``, mean over prompts, with gradient: what a policy gradient ascends, without samples."""
    logps = response_table(policy)
    return (logps.exp() * (rewards - price * (logps - towards.log()))).sum(-1).mean()


def normalised(log_weights: Tensor) -> Tensor:
    """Probabilities from their logarithms up to a constant per prompt, ``[P, R]``."""
    return log_weights.softmax(-1)


def total_variation(one: Tensor, other: Tensor) -> float:
    """The larger of the two prompts'."""
    return float((one - other).abs().sum(-1).max() / 2)


def gradient(module: AlignmentModule, loss: Tensor) -> Tensor:
    """Of all parameters of the policy, one after the other."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.policy.parameters()))])
