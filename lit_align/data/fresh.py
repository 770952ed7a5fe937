"""Rows that the policy has just answered, among rows that the data answer."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lit_align.data.packing import FixedRow, Response
from lit_align.types import AlignmentBatch, Annotation, EncodedPrompt, Rollouts


def fresh_row(prompt: EncodedPrompt, rollouts: Rollouts, row: int, scores: Sequence[float | None]) -> FixedRow:
    """Row ``row`` of the rollouts, which is ``prompt``'s, token by token as it was sampled, with these scores; None is not valid."""
    assert rollouts.prompts[row].id == prompt.prompt.id
    responses = []
    for k, score in enumerate(scores):
        tokens = rollouts.response_tokens[row, k][rollouts.response_mask[row, k]].tolist()
        learnt = rollouts.loss_mask[row, k][rollouts.response_mask[row, k]].tolist()
        responses.append(Response(tokens, learnt, bool(rollouts.finished[row, k]), score))
    return FixedRow(prompt.prompt.id, list(prompt.tokens), responses)


def said_of(annotation: Annotation, row: int) -> list[float | None]:
    """The scores of a row, None where there is none."""
    given = zip(annotation.scores[row].tolist(), annotation.valid[row].tolist(), strict=True)
    return [score if valid else None for score, valid in given]


def with_sampling_logps(batch: AlignmentBatch, rows: Sequence[int], rollouts: Rollouts) -> AlignmentBatch:
    """The batch, whose ``rows`` are the rollouts, with their sampling log-probs, and the engine's where one drew them; 0 in all others."""

    def widened(logps: Tensor) -> Tensor:
        wide = torch.zeros(batch.response_tokens.shape)
        wide[list(rows), : logps.shape[1], : logps.shape[2]] = logps
        return wide

    return replace(
        batch,
        sampling_logps=widened(rollouts.sampling_logps),
        engine_logps=None if rollouts.engine_logps is None else widened(rollouts.engine_logps),
        engine_staleness=rollouts.engine_staleness,
        max_engine_factor=rollouts.max_engine_factor,
    )


def with_preferences(batch: AlignmentBatch, rows: Sequence[int], annotation: Annotation) -> AlignmentBatch:
    """The batch, whose ``rows`` were annotated, with preferences for all: the judge's of these, of the others what their scores say.
    Unchanged where the annotator has none."""
    if annotation.preferences is None:
        return batch
    ahead = batch.scores.unsqueeze(-1) - batch.scores.unsqueeze(-2)  # [B, K, K]
    compared = batch.valid.unsqueeze(-1) & batch.valid.unsqueeze(-2) & ~torch.eye(ahead.shape[-1], dtype=torch.bool)
    preferences = ((ahead.sign() + 1) / 2).where(compared, math.nan)
    k = annotation.scores.shape[1]
    preferences[list(rows)] = math.nan
    preferences[list(rows), :k, :k] = annotation.preferences
    return replace(batch, preferences=preferences)


def picked(tensor: Tensor, letters: str, rows: Tensor, k: int) -> Tensor:
    """Of a tensor with these axes only these rows, ``[N]``, and the first ``k`` responses; one without rows stays as it is."""
    if not letters.startswith("B"):
        return tensor
    tensor = tensor[rows]
    for axis, letter in enumerate(letters):
        tensor = tensor.narrow(axis, 0, k) if letter == "K" else tensor
    return tensor


def no_rollouts(k: int, policy_version: int) -> Rollouts:
    """What the policy said, ``k`` times each, where it was asked nothing."""
    tokens, mask = torch.zeros(0, k, 0, dtype=torch.int64), torch.zeros(0, k, 0, dtype=torch.bool)
    return Rollouts(
        prompts=(),
        occurrences=torch.zeros(0, dtype=torch.int64),
        prompt_tokens=tokens[:, 0],
        prompt_mask=mask[:, 0],
        response_tokens=tokens,
        response_mask=mask,
        loss_mask=mask,
        sampling_logps=mask.float(),
        finished=mask.any(-1),
        texts=(),
        policy_version=policy_version,
    )


def said_first(annotation: Annotation | None, count: int, k: int) -> Annotation:
    """Scores of ``count`` prompts with ``k`` responses each: first those that were annotated, then others of which nothing is said."""
    scores, valid = torch.zeros(count, k), torch.zeros(count, k, dtype=torch.bool)
    if annotation is not None:
        judged = len(annotation.scores)
        scores[:judged], valid[:judged] = annotation.scores, annotation.valid
    return Annotation(scores=scores, valid=valid)
