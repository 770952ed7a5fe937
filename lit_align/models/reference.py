"""The frozen policy that divergence is measured against."""

from typing import final

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch, Policy, Reference


@final
class FrozenReference(Reference):
    """A separate copy of the policy. It is a holder, no ``nn.Module``: whoever keeps it as an attribute does not register its
    parameters, so no optimizer, strategy or checkpoint sees them."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy.eval().requires_grad_(False)

    @torch.no_grad()
    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``; 0 outside the response."""
        self.policy.to(batch.response_tokens.device)
        return self.policy(batch).token_logps.where(batch.response_mask, 0.0)
