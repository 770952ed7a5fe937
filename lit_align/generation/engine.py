"""What an external engine is: another program that has the policy's weights, and writes faster."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor


@final
@dataclass(frozen=True, slots=True)
class Written:
    """One response of an engine.

    Args:
        tokens: its ids; the token that ended it is the last one.
        logps: what the engine says of each, in nats at the temperature that it drew at, without top-p, top-k or penalties.
        finished: it ended by itself, not by its length.
    """

    tokens: Sequence[int]
    logps: Sequence[float]
    finished: bool


class Engine(ABC):
    """Continues token ids with weights that it was given.

    Attributes:
        version: how many rollouts the policy whose weights it has had been trained on; None if it has none yet, or of an unknown one.
    """

    version: int | None = None

    @final
    def synchronise(self, version: int | None, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take over these weights, which are of that version; see `load`. Where it fails, the version is unknown."""
        self.version = None
        self.load(weights)
        self.version = version

    @abstractmethod
    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Copy all weights of the model, by the names that they have in its files, and forget what was computed with others. The tensors
        are the trained policy's own: they are read here and kept nowhere."""

    @abstractmethod
    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        seeds: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        stop_ids: Sequence[int],
    ) -> list[list[Written]]:
        """One response for every seed of every prompt, drawn from the whole vocabulary.

        Args:
            prompts: token ids, as the policy reads them, B of them.
            seeds: B times K integers from 0 to 2^63 - 1. A response should be a function of the weights, its prompt and its seed, as far as
                the engine can promise that.
            max_new_tokens: longest response.
            temperature: divides the logits.
            stop_ids: tokens that end a response, and are its last one; nothing else ends it.
        """

    def close(self) -> None:  # noqa: B027
        """Give memory back. The engine starts again when it is next given weights."""
