"""The exact divergence of the next token between policy and reference, inside a training step."""

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lit_align.algorithms.reduction import widened
from lit_align.functional.divergences import kl_from_logits
from lit_align.types import KL, AlignmentBatch, Policy, PolicyOutput, Reference

ROWS = 4  # that the reference reads at once

_again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)  # nothing between is kept, nothing random is drawn


def read_with_kl(policy: Policy, reference: Reference, batch: AlignmentBatch, direction: KL, entropy: bool = False) -> PolicyOutput:
    """What the policy says of a batch, with its divergence at every response token in ``kl``, ``[B, K, T]``, and entropies if asked for.

    The reference reads a few rows at a time and without gradient. What it says is kept until the backward pass, which compares the two
    once more: it costs the memory of one more vocabulary for every response token.
    """
    parts = [batch.rows(rows) for rows in torch.arange(len(batch.scores), device=batch.scores.device).split(ROWS)]
    with policy.inference():  # once, so that processes with more rows than others enter it as often
        theirs = [reference.vocabulary_logps(part) for part in parts]
    output: PolicyOutput = policy(batch, vocabulary=True, entropy=entropy)
    assert output.vocabulary_logps is not None
    ours = output.vocabulary_logps.split(ROWS)
    kl = [_again(_divergence, own, other, batch, part, direction) for own, other, part in zip(ours, theirs, parts, strict=True)]
    return replace(output, vocabulary_logps=None, kl=torch.cat(kl))


def _divergence(ours: Tensor, theirs: Tensor, batch: AlignmentBatch, part: AlignmentBatch, direction: KL) -> Tensor:
    """Of some rows, as wide as the batch."""
    ours = ours[:, :, : theirs.shape[2]]  # without the columns that are padding in all of them
    kl = kl_from_logits(ours, theirs) if direction == "policy_reference" else kl_from_logits(theirs, ours)
    return widened(kl, batch, part)
