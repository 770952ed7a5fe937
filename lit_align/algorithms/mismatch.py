"""What becomes of responses that another engine drew: how far it is from the policy, and what their losses count for."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from lit_align.functional.distributed import global_mean, global_sum
from lit_align.functional.divergences import kl_k3
from lit_align.functional.importance import truncated_ratio
from lit_align.types import AlignmentBatch

LARGE = 0.05
"""Nats per token: several times what rounding to bfloat16 makes. More is other weights, another temperature or another model."""


def with_engine_factors(batch: AlignmentBatch) -> AlignmentBatch:
    """The batch with what every response's loss is multiplied by, ``min(pi_t(y|x) / q(y|x), max_engine_factor)``, where an engine ``q``
    drew it; as it was where none did. ``sampling_logps`` are the training forward's."""
    if batch.engine_logps is None:
        return batch
    difference = _differences(batch).sum(-1)  # [B, K]
    return replace(batch, engine_factors=truncated_ratio(difference, torch.zeros_like(difference), ceiling=batch.max_engine_factor))


def corrected(losses: Tensor, batch: AlignmentBatch) -> Tensor:
    """The same losses as if the policy had drawn the responses: those of responses ``[B, K]``, or of their tokens ``[B, K, T]``, times
    the response's factor. Losses of pairs ``[B, K, K]`` stay: a pair is a question about two responses, whoever wrote them."""
    factors = batch.engine_factors
    if factors is None or batch.pairs is not None:
        return losses
    return losses * (factors if losses.dim() == 2 else factors.unsqueeze(-1))


def mismatch(batch: AlignmentBatch) -> dict[str, Tensor]:
    """How far the engine was from the policy, the mean over all ranks; nothing where none drew. A collective, also on a rank that has
    no such response."""
    drawn = torch.tensor(batch.engine_logps is not None, device=batch.scores.device)
    if not global_sum(drawn):
        return {}
    zeros = torch.zeros_like(batch.response_mask, dtype=torch.float32)
    sampled = batch.sampled.view(-1, 1) & batch.response_mask.any(-1)  # [B, K]
    tokens = batch.loss_mask & sampled.unsqueeze(-1)  # [B, K, T]
    differences = zeros if batch.engine_logps is None else _differences(batch)
    factors = torch.ones_like(batch.scores) if batch.engine_factors is None else batch.engine_factors
    clipped = differences.sum(-1) > math.log(batch.max_engine_factor)
    stale = torch.full_like(batch.scores, float(batch.engine_staleness))
    return {
        "engine/logp_difference": global_mean(differences.abs(), tokens),
        "engine/kl": global_mean(kl_k3(zeros, differences), tokens),
        "engine/factor_mean": global_mean(factors, sampled),
        "engine/clipped_fraction": global_mean(clipped.float(), sampled),
        "engine/staleness": global_mean(stale, sampled),
    }


def warning(measured: dict[str, Tensor]) -> str | None:
    """What to say of a mismatch, None of an ordinary one."""
    if not measured or measured["engine/logp_difference"] <= LARGE:
        return None
    stale = measured["engine/staleness"] > 0
    why = (
        "Its weights are older than the policy's: a smaller `synchronise_every` of the sampler brings it nearer."
        if stale
        else "It has the policy's weights, so it reads something else: compare its model folder, its temperature and its precision with "
        "those of the policy."
    )
    return (
        f"The engine that samples and the policy that is trained differ by {float(measured['engine/logp_difference']):.2g} nats per token, "
        f"more than the {LARGE:g} that rounding explains, and {float(measured['engine/clipped_fraction']):.0%} of the responses have their "
        f"factor cut. {why} This is said once, see engine/logp_difference."
    )


def _differences(batch: AlignmentBatch) -> Tensor:
    """``log pi_t - log q`` of every token, 0 outside the loss mask, ``[B, K, T]``."""
    assert batch.engine_logps is not None
    return -batch.above_sampling(batch.engine_logps)
