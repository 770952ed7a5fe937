"""The exact divergence of the next token between policy and reference, inside a training step."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.functional.divergences import kl_from_logits
from lit_align.types import KL, AlignmentBatch, Policy, PolicyOutput, Reference

ROWS = 4  # that the reference reads at once

_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # nothing between is kept, nothing random is drawn


def read_with_kl(policy: Policy, reference: Reference, batch: AlignmentBatch, direction: KL, entropy: bool = False) -> PolicyOutput:
    """What the policy says of a batch, with its divergence at every response token in ``kl``, ``[B, K, T]``, and entropies if asked for.

    The reference reads a few rows at a time and without gradient. What both say of response tokens, and of nothing else, is kept until the
    backward pass, which compares it once more.
    """
    parts = [batch.rows(rows) for rows in torch.arange(len(batch.scores), device=batch.scores.device).split(ROWS)]
    with policy.inference():  # once, so that processes with more rows than others enter it as often
        theirs = [reference.vocabulary_logps(part)[part.response_mask] for part in parts]  # [m, V]
    output: PolicyOutput = policy(batch, vocabulary=True, entropy=entropy)
    assert output.vocabulary_logps is not None
    ours = output.vocabulary_logps[batch.response_mask].split([len(table) for table in theirs])
    kl = torch.cat([_again(_divergence, own, other, direction) for own, other in zip(ours, theirs, strict=True)])  # [M]
    placed = torch.zeros_like(output.token_logps).masked_scatter(batch.response_mask, kl)
    return replace(output, vocabulary_logps=None, kl=placed)


def _divergence(ours: Tensor, theirs: Tensor, direction: KL) -> Tensor:
    """Of each token, ``[m, V]`` to ``[m]``."""
    return kl_from_logits(ours, theirs) if direction == "policy_reference" else kl_from_logits(theirs, ours)
