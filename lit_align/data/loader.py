"""Sized loaders: one over a rollout that knows its place, one over held-out prompts that is never early."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch, EncodedPrompt


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Which rows are trained on together, and what their summed losses are divided by: the batch's ``*_normaliser`` fields."""

    rows: Tensor  # [b]
    normalisers: Mapping[str, Tensor]  # [] each
    dropout_seed: int


@final
class RolloutLoader:
    """Yields the micro-batches of a rollout, the same ones to whoever asks; after a restart ``iter`` begins, once, where it was."""

    def __init__(self, batch: AlignmentBatch, plan: Sequence[MicroBatch]) -> None:
        self.batch, self.plan = batch, plan
        self._start = self._position = 0

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[AlignmentBatch]:
        """A generator: Lightning calls ``iter`` twice before the first ``next``, and only a ``next`` may count."""
        start, self._start = self._start, 0
        for position in range(start, len(self.plan)):
            micro, self._position = self.plan[position], position + 1
            yield replace(self.batch.rows(micro.rows), **micro.normalisers, dropout_seed=micro.dropout_seed)

    def state_dict(self) -> dict[str, int]:
        """How many micro-batches have been given out."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after that many, at the next ``iter``."""
        self._start = state["position"]


@final
class LazyLoader:
    """A sized loader that makes a batch of every chunk when it is read, and so sees the policy of that moment."""

    def __init__(self, chunks: Sequence[list[EncodedPrompt]], make: Callable[[list[EncodedPrompt]], Any]) -> None:
        self.chunks, self.make = chunks, make

    def __len__(self) -> int:
        return len(self.chunks)

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.chunks)


def schedule(steps: int, inner_epochs: int, seed: int, rollout: int) -> list[int]:
    """Optimizer steps of one rollout in the order they are taken: as sampled, then a new permutation for every further inner
    epoch. Rows never move between steps, so a step is the same set of prompts on any number of ranks."""
    order = list(range(steps))
    for inner in range(1, inner_epochs):
        generator = torch.Generator().manual_seed(derived_seed(seed, "inner", rollout, inner))
        order += torch.randperm(steps, generator=generator).tolist()
    return order


def derived_seed(*parts: object) -> int:
    """A seed that is a function of these, and of nothing else."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest(), "big")
