"""From a loss for every response, token or pair to one number for the optimizer step."""

from collections.abc import Callable

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch


def counted(values: Tensor, batch: AlignmentBatch) -> Tensor:
    """Which losses count: those of valid responses ``[B, K]``, of their tokens ``[B, K, T]`` or, where ``prepare`` made pairs,
    of the pairs ``[B, K, K]``. A number for all ``[]`` always does."""
    if values.dim() < 2:
        return torch.ones_like(values, dtype=torch.bool)
    if values.dim() == 2:
        return batch.valid
    return batch.valid.unsqueeze(-1) & batch.loss_mask if batch.pairs is None else ~batch.pairs.isnan()


def normaliser(values: Tensor, batch: AlignmentBatch) -> Tensor:
    """What the sum of such losses is divided by, ``[]``.

    Raises:
        ValueError: if the batch did not come from a data module's loader.
    """
    per_triple = batch.token_normaliser if batch.pairs is None else batch.pair_normaliser
    found = per_triple if values.dim() == 3 else batch.response_normaliser
    if found is None:
        raise ValueError("This batch did not come from the data module's loader: it has no normaliser.")
    return found


def reduced(values: Tensor, batch: AlignmentBatch) -> Tensor:
    """Their sum over the normaliser of the whole optimizer step, ``[]``.

    Summed over micro-batches and ranks, and averaged as Lightning and DDP do, this is the mean over the valid responses (tokens,
    pairs) of the global step, however it is cut.
    """
    return values.where(counted(values, batch), 0.0).sum() / normaliser(values, batch).clamp(min=1e-9)


def in_chunks(read: Callable[[AlignmentBatch], Tensor], batch: AlignmentBatch, chunk_prompts: int) -> Tensor:
    """What ``read`` says of every response token, so many prompts at a time; 0 outside the response, ``[B, K, T]``."""
    parts = [batch.rows(rows) for rows in torch.arange(len(batch.scores), device=batch.scores.device).split(chunk_prompts)]
    return torch.cat([widened(read(part), batch, part) for part in parts])


def widened(values: Tensor, batch: AlignmentBatch, part: AlignmentBatch) -> Tensor:
    """What was read of some rows, ``[b, K, t]``, as wide as the batch they are of; 0 outside the response, ``[b, K, T]``."""
    missing = batch.response_mask.shape[-1] - part.response_mask.shape[-1]
    return torch.nn.functional.pad(values.where(part.response_mask, 0.0), (0, missing))
