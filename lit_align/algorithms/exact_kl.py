"""The exact divergence of the next token between policy and reference, inside a training step."""

import torch
from torch import Tensor

from lit_align.algorithms.reduction import widened
from lit_align.functional.divergences import kl_from_logits
from lit_align.types import KL, AlignmentBatch, Policy, PolicyOutput, Reference

ROWS = 4  # that the reference reads at once


def read_with_kl(policy: Policy, reference: Reference, batch: AlignmentBatch, direction: KL) -> PolicyOutput:
    """What the policy says of a batch, with its divergence at every response token in ``kl``, ``[B, K, T]``.

    The reference reads a few rows at a time and without gradient. The distributions of both are kept until the backward pass: it
    costs the memory of another vocabulary for every response token.
    """
    parts = [batch.rows(rows) for rows in torch.arange(len(batch.scores), device=batch.scores.device).split(ROWS)]
    with policy.inference():  # once, so that processes with more rows than others enter it as often
        theirs = [reference.vocabulary_logps(part) for part in parts]
    output: PolicyOutput = policy(batch, vocabulary=True)
    assert output.vocabulary_logps is not None
    ours = output.vocabulary_logps.split(ROWS)
    kl = [_divergence(own, other, batch, part, direction) for own, other, part in zip(ours, theirs, parts, strict=True)]
    return PolicyOutput(token_logps=output.token_logps, kl=torch.cat(kl))


def _divergence(ours: Tensor, theirs: Tensor, batch: AlignmentBatch, part: AlignmentBatch, direction: KL) -> Tensor:
    """Of some rows, as wide as the batch."""
    ours = ours[:, :, : theirs.shape[2]]  # without the columns that are padding in all of them
    kl = kl_from_logits(ours, theirs) if direction == "policy_reference" else kl_from_logits(theirs, ours)
    return widened(kl, batch, part)
