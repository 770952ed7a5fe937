"""The head that reads values off the hidden states of a language model: the policy's, or a critic's own."""

from typing import Any

import torch
from torch import Tensor, nn


def new_value_head(model: Any) -> nn.Linear:
    """A head for the last hidden states of a causal language model; it begins at 0, so nothing is expected anywhere."""
    embedding = model.get_output_embeddings().weight
    head = nn.Linear(embedding.shape[1], 1, bias=False, dtype=torch.float32)
    nn.init.zeros_(head.weight)
    return head


def read_values(head: nn.Module, hidden: Tensor) -> Tensor:
    """One number of every position in float32, ``[N, T, H]`` to ``[N, T]``. The head computes in its own precision: differences of
    values are smaller than bfloat16 can tell."""
    weight = next(head.parameters())
    with torch.autocast(hidden.device.type, enabled=False):
        return head(hidden.to(weight.dtype)).squeeze(-1).float()
