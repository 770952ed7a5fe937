"""Reading several sources at once."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from typing import Any, final

import torch

from lit_align.data.loader import derived_seed
from lit_align.data.pool import numbered
from lit_align.data.readers.base import PromptReader
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.types import EncodedPrompt


@final
class MixedReader(PromptReader):
    """From each source its share of every take, to within a prompt or so that the next takes make up for; shuffled by a seed."""

    def __init__(self, source: MixedPrompts, readers: Mapping[str, PromptReader], seed: int) -> None:
        self.source, self._readers, self._seed = source, readers, seed
        self._owed = dict.fromkeys(source.sources, 0.0)  # prompts that a source is behind its share
        self._taken = 0

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next of every source."""
        counts = dict.fromkeys(self._readers, 0)
        for _ in range(count):
            for name, share in self.source.shares.items():
                self._owed[name] += share
            due = max((name for name, share in self.source.shares.items() if share), key=self._owed.__getitem__)
            self._owed[due] -= 1
            counts[due] += 1
        taken = [self._of(name, prompt) for name, reader in self._readers.items() for prompt in reader.take(counts[name])]
        generator = torch.Generator().manual_seed(derived_seed(self._seed, "mixture", self._taken))
        self._taken += count
        return numbered(taken[i] for i in torch.randperm(count, generator=generator).tolist())

    def in_order(self) -> list[EncodedPrompt]:
        """Every prompt of every source that fits, source by source."""
        return list(chain.from_iterable((self._of(name, p) for p in reader.in_order()) for name, reader in self._readers.items()))

    def state_dict(self) -> dict[str, Any]:
        """The place in every source, and what it is owed."""
        places = {name: reader.state_dict() for name, reader in self._readers.items()}
        return {"taken": self._taken, "owed": dict(self._owed), "sources": places}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there. A source that is new begins at its beginning."""
        self._taken = state["taken"]
        for name in self._readers.keys() & state["sources"].keys():
            self._owed[name] = state["owed"][name]
            self._readers[name].load_state_dict(state["sources"][name])

    def metrics(self) -> dict[str, float]:
        """Those of every source, by its name."""
        return {f"{key}/{name}": value for name, reader in self._readers.items() for key, value in reader.metrics().items()}

    def summary(self) -> str:
        """Of every source, and its share."""
        shares = self.source.shares
        return "".join(f"\n  {name}, {shares[name]:.1%} of a rollout: {reader.summary()}" for name, reader in self._readers.items())

    def _of(self, name: str, prompt: EncodedPrompt) -> EncodedPrompt:
        return replace(prompt, prompt=replace(prompt.prompt, dataset=name))
