"""Reading on where the last rollout stopped: sources that can be indexed, streams, and mixtures of both."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any, final

import torch

from lit_align.data.loader import derived_seed
from lit_align.data.pool import PromptEncoder, PromptPool, numbered
from lit_align.data.sources.mixed import MixedPrompts
from lit_align.types import EncodedPrompt, IndexedPrompts, PromptSource, PromptStream, UserError


class PromptReader(ABC):
    """An endless reading of a source, the same on every rank, with a place in it."""

    @abstractmethod
    def take(self, count: int) -> list[EncodedPrompt]:
        """The next ``count`` prompts; one that is there several times is the next ``occurrence`` each time."""

    @abstractmethod
    def in_order(self) -> list[EncodedPrompt]:
        """Every prompt that fits once, as the source has them: for evaluation. The place stays."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """The place, in ints, floats and dicts."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Read on from that place."""

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """What is known only by reading, up to the place: rollout metrics."""

    @abstractmethod
    def summary(self) -> str:
        """How many prompts there are, for people."""


def reader_of(source: PromptSource, encoder: PromptEncoder, seed: int) -> PromptReader:
    """The reader for this kind of source.

    Raises:
        UserError: if it is none that can be read, or has no prompt that fits.
    """
    if isinstance(source, IndexedPrompts):
        return IndexedReader(source, encoder, seed)
    if isinstance(source, PromptStream):
        return StreamReader(source, encoder, seed)
    if isinstance(source, MixedPrompts):
        return MixedReader(source, encoder, seed)
    raise UserError(
        f"Prompts should be IndexedPrompts, a PromptStream or MixedPrompts, got {type(source).__name__}. Inherit from one of them."
    )


@final
class IndexedReader(PromptReader):
    """Through one seeded permutation after another."""

    def __init__(self, source: IndexedPrompts, encoder: PromptEncoder, seed: int) -> None:
        self._pool = PromptPool(source, encoder.policy, encoder.max_tokens, encoder.long_prompts, seed)
        self._position = 0

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next of the endless reading."""
        start, self._position = self._position, self._position + count
        return self._pool.take(start, count)

    def in_order(self) -> list[EncodedPrompt]:
        """Every prompt that fits."""
        return self._pool.in_order()

    def state_dict(self) -> dict[str, Any]:
        """How many have been taken."""
        return {"position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after that many."""
        self._position = state["position"]

    def metrics(self) -> dict[str, float]:
        """Nothing: all is known before the run."""
        return {}

    def summary(self) -> str:
        """Kept, and dropped."""
        everyone = len(self._pool.source)
        return f"{len(self._pool)} of {everyone}; {self._pool.dropped / everyone:.1%} are too long and dropped."


@final
class StreamReader(PromptReader):
    """Block after block, and from the beginning when the stream ends. A place is a number of prompts: after a resume the stream is
    read again up to the block under way, and as that is shuffled by a seed of its own, no prompt has to be kept.
    """

    def __init__(self, source: PromptStream, encoder: PromptEncoder, seed: int) -> None:
        if source.shuffle_buffer < 0:
            raise UserError(f"shuffle_buffer: expected a number of prompts, or 0 to leave them in order, got {source.shuffle_buffer}.")
        self.source, self._encoder, self._seed = source, encoder, seed
        self._place = {"reading": 0, "start": 0, "given": 0, "kept": 0, "dropped": 0}
        self._prompts = self._endless()

    def take(self, count: int) -> list[EncodedPrompt]:
        """The next of the stream."""
        return numbered(islice(self._prompts, count))

    def in_order(self) -> list[EncodedPrompt]:
        """One reading, if it has an end."""
        if self.source.max_prompts is None:
            raise UserError(
                f"The stream {self.source.name!r} can't be an evaluation set: nobody knows where it ends. Set its `max_prompts`, or use a "
                "source that isn't a stream."
            )
        return numbered(self._encoder.encoded(prompt) for prompt in self.source if self._encoder.fits(prompt))

    def state_dict(self) -> dict[str, Any]:
        """Which reading, where its block under way begins, how much of that was given out; what was kept of the reading, and
        dropped of all."""
        return dict(self._place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self._place = dict(state)
        self._prompts = self._endless()

    def metrics(self) -> dict[str, float]:
        """Prompts that were too long, of all readings, and how many readings have ended."""
        return {"prompts/dropped": self._place["dropped"], "prompts/readings": self._place["reading"]}

    def summary(self) -> str:
        """What can be said without reading."""
        order = f"shuffled {self.source.shuffle_buffer} at a time" if self.source.shuffle_buffer else "in order"
        return f"a stream, read {order}; prompts that are too long are counted on the way."

    def _endless(self) -> Iterator[EncodedPrompt]:
        place = self._place
        while True:
            prompts = self.source.read(place["start"])
            while block := list(islice(prompts, max(self.source.shuffle_buffer, 1))):
                generator = torch.Generator().manual_seed(derived_seed(self._seed, "block", place["reading"], place["start"]))
                order = torch.randperm(len(block), generator=generator).tolist()
                for i in order[place["given"] :]:
                    place["given"] += 1
                    if self._encoder.fits(block[i]):
                        place["kept"] += 1
                        yield self._encoder.encoded(block[i])
                    else:
                        self._leave_out(block[i].id)
                place["start"] += len(block)
                place["given"] = 0
            self._end_reading()

    def _leave_out(self, prompt: int) -> None:
        if self._encoder.long_prompts == "refuse":
            raise UserError(
                f"Prompt {prompt} of the stream {self.source.name!r} is longer than {self._encoder.max_tokens} tokens. Set "
                "`long_prompts` to drop or truncate_left, or raise `max_prompt_tokens`."
            )
        self._place["dropped"] += 1

    def _end_reading(self) -> None:
        place = self._place
        if not place["kept"]:
            raise UserError(
                f"The stream {self.source.name!r} ended after {place['start']} prompts without one that fits into "
                f"{self._encoder.max_tokens} tokens. Set `long_prompts: truncate_left`, or use another source."
            )
        if place["kept"] < place["start"]:
            left = place["start"] - place["kept"]
            warnings.warn(
                f"{left} of {place['start']} prompts of the stream {self.source.name!r} ({left / place['start']:.1%}) are longer than "
                f"{self._encoder.max_tokens} tokens and dropped.",
                stacklevel=2,
            )
        place.update(reading=place["reading"] + 1, start=0, kept=0)


@final
class MixedReader(PromptReader):
    """From each source its share of every take, to within a prompt or so that the next takes make up for; shuffled by a seed."""

    def __init__(self, source: MixedPrompts, encoder: PromptEncoder, seed: int) -> None:
        self.source, self._seed = source, seed
        self._readers = {name: reader_of(each, encoder, derived_seed(seed, "dataset", name)) for name, each in source.sources.items()}
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
