"""The frozen policy that divergence is measured against: another copy of the model, or the policy itself with its adapter off."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.func import functional_call

from lit_align.models.lora import adapter_off
from lit_align.types import AlignmentBatch, Policy, PolicyOutput, Prompt, Reference, Rollouts


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

    @torch.no_grad()
    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        device = batch.response_tokens.device
        if self.offload:
            self.policy.to("cpu")  # whoever sampled from it may have moved it
            tensors = {name: tensor.to(device) for name, tensor in [*self.policy.named_parameters(), *self.policy.named_buffers()]}
            output: PolicyOutput = functional_call(self.policy, tensors, (batch,))
        else:
            output = self.policy.to(device)(batch)
        return output.token_logps.where(batch.response_mask, 0.0)


@final
class AdapterOffReference(Reference):
    """A policy with a LoRA adapter, while the adapter is off. It costs a forward and no memory; a resumed run has the same one,
    because checkpoints hold nothing but the adapter."""

    def __init__(self, policy: Policy) -> None:
        self.policy = AdapterOffPolicy(policy)

    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        with self.policy.inference():
            return self.policy(batch).token_logps.where(batch.response_mask, 0.0)


@final
class AdapterOffPolicy(Policy):
    """A view of another policy whose forwards run with the adapter off and without gradient; to be sampled from, not trained."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self._policy = policy
        self.temperature, self.eos_ids, self.special_ids = policy.temperature, policy.eos_ids, policy.special_ids
        self.bos_id, self.pad_id, self.context_length = policy.bos_id, policy.pad_id, policy.context_length

    @torch.no_grad()
    def forward(self, batch: AlignmentBatch | Rollouts) -> PolicyOutput:
        """Log-probs of the response tokens."""
        with adapter_off(self._policy):
            return self._policy(batch)

    @torch.no_grad()
    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """See `Policy.next_token_logits`."""
        with adapter_off(self._policy):
            return self._policy.next_token_logits(tokens, mask, cache)

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt."""
        return self._policy.encode(prompt)

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of a whole answer."""
        return self._policy.encode_response(prompt, text)

    def decode(self, tokens: Sequence[int]) -> str:
        """Text of response tokens."""
        return self._policy.decode(tokens)

    def make_reference(self) -> Reference:
        """The reference of the policy that is viewed."""
        return self._policy.make_reference()

    def save(self, folder: str) -> None:
        """Write the model without the adapter."""
        with adapter_off(self._policy):
            self._policy.save(folder)
