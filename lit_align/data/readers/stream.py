"""Reading a stream: in order or block by shuffled block, again from the beginning at its end."""

import warnings
from collections.abc import Iterator
from itertools import islice
from typing import Any, final

import torch

from lit_align.data.loader import derived_seed
from lit_align.data.pool import PromptEncoder, numbered
from lit_align.data.readers.base import PromptReader
from lit_align.types import EncodedPrompt, PromptStream, UserError


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
