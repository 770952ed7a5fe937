"""What every reader of prompts can do."""

from abc import ABC, abstractmethod
from typing import Any

from lit_align.types import EncodedPrompt


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
