"""Reading a source that can be indexed."""

from typing import Any, final

from lit_align.data.pool import PromptEncoder, PromptPool
from lit_align.data.readers.base import PromptReader
from lit_align.types import EncodedPrompt, IndexedPrompts


@final
class IndexedReader(PromptReader):
    """Through one seeded permutation after another."""

    def __init__(self, source: IndexedPrompts, encoder: PromptEncoder, seed: int) -> None:
        self._pool = PromptPool(source, encoder.model, encoder.max_tokens, encoder.long_prompts, seed)
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
