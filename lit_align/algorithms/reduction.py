"""From a loss for every response or token to one number for the optimizer step."""

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch


def counted(values: Tensor, batch: AlignmentBatch) -> Tensor:
    """Which losses count: those of valid responses ``[B, K]``, or of their tokens ``[B, K, T]``."""
    return batch.valid.unsqueeze(-1) & batch.loss_mask if values.dim() == 3 else batch.valid


def reduced(values: Tensor, batch: AlignmentBatch) -> Tensor:
    """Their sum over the normaliser of the whole optimizer step, ``[]``.

    Summed over micro-batches and ranks, and averaged as Lightning and DDP do, this is the mean over the valid responses (tokens)
    of the global step, however it is cut.

    Raises:
        ValueError: if the batch did not come from a data module's loader.
    """
    normaliser = batch.token_normaliser if values.dim() == 3 else batch.response_normaliser
    if normaliser is None:
        raise ValueError("This batch did not come from the data module's loader: it has no normaliser.")
    return values.where(counted(values, batch), 0.0).sum() / normaliser.clamp(min=1e-9)


def valid_like(values: Tensor, valid: Tensor) -> Tensor:
    """``valid`` where ``values`` has one number per response ``[B, K]``, everything where it has not."""
    return valid if values.shape == valid.shape else torch.ones_like(values, dtype=torch.bool)


def widened(token_logps: Tensor, batch: AlignmentBatch, part: AlignmentBatch) -> Tensor:
    """Token log-probs of some rows ``[b, K, t]``: zero outside the response, and as wide as the whole batch, ``[b, K, T]``."""
    missing = batch.response_mask.shape[-1] - token_logps.shape[-1]
    return torch.nn.functional.pad(token_logps.where(part.response_mask, 0.0), (0, missing))
