"""The policy that divergence is measured against: another copy of the model, or the policy itself with its adapter off or with
other weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from lit_align.models.lora import adapter_off
from lit_align.models.moving import MovingWeights
from lit_align.types import AlignmentBatch, Message, Policy, PolicyOutput, Prompt, Reference, Rollouts


@final
class FrozenReference(Reference):
    """A separate copy of the policy. It is a holder, no ``nn.Module``: whoever keeps it as an attribute does not register its
    parameters, so no optimizer, strategy or checkpoint sees them.

    Args:
        policy: the copy; it is frozen and set to eval mode for good.
        offload: keep the weights on the CPU, and a copy on the policy's device only while it scores: once per chunk of a rollout.
    """

    def __init__(self, policy: Policy, offload: bool = False) -> None:
        self.policy, self.offload = policy.eval().requires_grad_(False), offload

    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        return self._read(batch).token_logps.where(batch.response_mask, 0.0)

    def vocabulary_logps(self, batch: AlignmentBatch) -> Tensor:
        """See `Reference.vocabulary_logps`."""
        return _table(self._read(batch, vocabulary=True))

    @torch.no_grad()
    def _read(self, batch: AlignmentBatch, vocabulary: bool = False) -> PolicyOutput:
        device = batch.response_tokens.device
        if not self.offload:
            return self.policy.to(device)(batch, vocabulary)
        self.policy.to("cpu")  # whoever sampled from it may have moved it
        tensors = {name: tensor.to(device) for name, tensor in [*self.policy.named_parameters(), *self.policy.named_buffers()]}
        return functional_call(self.policy, tensors, (batch, vocabulary))


@final
class AdapterOffReference(Reference):
    """A policy with a LoRA adapter, while the adapter is off. It costs a forward and no memory; a resumed run has the same one,
    because checkpoints hold nothing but the adapter."""

    def __init__(self, policy: Policy) -> None:
        self.policy = ChangedPolicy(policy, partial(adapter_off, policy))

    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        return _scored(self.policy, batch).token_logps.where(batch.response_mask, 0.0)

    def vocabulary_logps(self, batch: AlignmentBatch) -> Tensor:
        """See `Reference.vocabulary_logps`."""
        return _table(_scored(self.policy, batch, vocabulary=True))


@final
class MovingReference(Reference):
    """A policy under another value of its trained weights: it costs a forward, and what those weights take.

    Args:
        policy: the one that is trained.
        weights: whoever keeps them moves them, and has them in its checkpoints.
    """

    def __init__(self, policy: Policy, weights: MovingWeights) -> None:
        self.policy = ChangedPolicy(policy, partial(weights.replacing, policy))

    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        return _scored(self.policy, batch).token_logps.where(batch.response_mask, 0.0)

    def vocabulary_logps(self, batch: AlignmentBatch) -> Tensor:
        """See `Reference.vocabulary_logps`."""
        return _table(_scored(self.policy, batch, vocabulary=True))


@final
class ChangedPolicy(Policy):
    """A view of another policy whose forwards run while that one is changed, and without gradient; to be sampled from, not
    trained.

    Args:
        policy: the one that is viewed.
        change: makes the context in which it is changed, and after which it is as before.
    """

    def __init__(self, policy: Policy, change: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._policy, self._change = policy, change
        self.temperature, self.eos_ids, self.special_ids = policy.temperature, policy.eos_ids, policy.special_ids
        self.bos_id, self.pad_id, self.context_length = policy.bos_id, policy.pad_id, policy.context_length

    @torch.no_grad()
    def forward(self, batch: AlignmentBatch | Rollouts, vocabulary: bool = False, entropy: bool = False) -> PolicyOutput:
        """Log-probs of the response tokens."""
        with self._change():
            return self._policy(batch, vocabulary, entropy)

    @torch.no_grad()
    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """See `Policy.next_token_logits`."""
        with self._change():
            return self._policy.next_token_logits(tokens, mask, cache)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        return self._policy.encode(prompt)

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of a whole answer."""
        return self._policy.encode_response(prompt, text)

    def encode_turns(self, prompt: Prompt, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of the turns that follow a prompt, and which of them the assistant says."""
        return self._policy.encode_turns(prompt, turns)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of response tokens."""
        return self._policy.decode(tokens)

    def make_reference(self) -> Reference:
        """The policy that is viewed as it was before training."""
        return self._policy.make_reference()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Those of these forwards."""
        with self._change():
            yield from self._policy.weights()

    def save(self, folder: str) -> None:
        """Write the model as it is in these forwards."""
        with self._change():
            self._policy.save(folder)


def _scored(policy: Policy, batch: AlignmentBatch, vocabulary: bool = False) -> PolicyOutput:
    with policy.inference():
        return policy(batch, vocabulary)


def _table(output: PolicyOutput) -> Tensor:
    assert output.vocabulary_logps is not None
    return output.vocabulary_logps
