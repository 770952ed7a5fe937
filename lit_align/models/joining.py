"""Prompt and response as the one row that a model reads."""

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch, Rollouts


def joined_rows(batch: AlignmentBatch | Rollouts) -> tuple[Tensor, Tensor]:
    """Tokens and mask of every response after its prompt, ``[B * K, P + T - 1]``, so that the last ``T`` positions are those from which
    the response's tokens are predicted. The last token predicts nothing that is scored and is not read."""
    k = batch.response_tokens.shape[1]
    tokens = torch.cat([batch.prompt_tokens.repeat_interleave(k, 0), batch.response_tokens.flatten(0, 1)], 1)
    mask = torch.cat([batch.prompt_mask.repeat_interleave(k, 0), batch.response_mask.flatten(0, 1)], 1)
    return tokens[:, :-1], mask[:, :-1]


def positions_of(mask: Tensor) -> Tensor:
    """The place of every token among those in the mask, from 0 on, ``[N, S]`` to the same; 0 for padding on the left."""
    return (mask.long().cumsum(-1) - 1).clamp(min=0)
