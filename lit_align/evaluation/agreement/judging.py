"""Verdicts of an annotator about pairs of texts."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.answers import text_rollouts
from lit_align.evaluation.judging import beats
from lit_align.types import Annotation, Annotator, Prompt

Progress = Callable[[Sequence[range]], Iterable[range]]
"""Gives back the chunks that it is given, one after the other, and may say how far it is."""


@final
@dataclass(frozen=True, slots=True)
class PairVerdicts:
    """``values`` and ``orders`` as `LabelledPairs` has them, ``[N]`` and ``[N, 2]``, and whether they are probabilities."""

    values: Tensor
    orders: Tensor | None
    soft: bool


def judge_pairs(
    annotator: Annotator,
    prompts: Sequence[Prompt],
    responses: Sequence[tuple[str, str]],
    *,
    chunk_pairs: int = 64,
    progress: Progress = iter,
) -> PairVerdicts:
    """Ask ``annotator``, which has been set up, about every pair.

    One that gives preferences is taken at its probabilities, and so is one whose scores are ``log_odds``. Of any other that gives scores
    the higher wins and equal ones tie.

    Args:
        annotator: sees the two responses of a pair as a group of K = 2.
        prompts: of every pair, ``N``.
        responses: the texts of every pair, ``N``.
        chunk_pairs: how many pairs it sees at a time.
        progress: told of every chunk.
    """
    chunks = [range(start, min(start + chunk_pairs, len(prompts))) for start in range(0, len(prompts), chunk_pairs)]
    said = [annotator.annotate(text_rollouts([prompts[i] for i in rows], [responses[i] for i in rows])) for rows in progress(chunks)]
    parts = [_verdicts(one, annotator.log_odds) for one in said]
    orders = [part.orders for part in parts if part.orders is not None]
    return PairVerdicts(
        torch.cat([part.values for part in parts]) if parts else torch.zeros(0, dtype=torch.float64),
        torch.cat(orders) if orders else None,
        any(part.soft for part in parts),
    )


def _verdicts(said: Annotation, log_odds: bool) -> PairVerdicts:
    orders = None
    if said.preferences is not None and said.seen_first is not None:
        orders = torch.stack([said.seen_first[:, 0, 1], 1 - said.seen_first[:, 1, 0]], -1).double().cpu()
    return PairVerdicts(beats(said, log_odds)[:, 0, 1], orders, log_odds or said.preferences is not None)
