"""Where the answers to a prompt come from, and who labels them, drawn for every row of a rollout."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lit_align.data.loader import derived_seed
from lit_align.types import EncodedPrompt, Source, UserError


@final
@dataclass(frozen=True)
class Routes:
    """The probabilities of all sources but `Source.FIXED`, which has the rest.

    Args:
        relabel, fresh_self, fresh_annotated: of `Source.RELABEL` and so on.

    Raises:
        UserError: if one is not from 0 to 1, or they add up to more than 1.
    """

    relabel: float
    fresh_self: float
    fresh_annotated: float

    def __post_init__(self) -> None:
        chances = self.relabel, self.fresh_self, self.fresh_annotated
        if not (all(chance >= 0 for chance in chances) and sum(chances) <= 1 + 1e-9):
            raise UserError(
                "relabel, fresh_self and fresh_annotated should be probabilities that add up to at most 1, the rest being fixed rows, got "
                f"{self.relabel}, {self.fresh_self} and {self.fresh_annotated}. Correct them in data.init_args."
            )

    @property
    def fixed(self) -> float:
        """The rest."""
        rest = 1.0 - self.relabel - self.fresh_self - self.fresh_annotated
        return rest if rest > 1e-9 else 0.0

    @property
    def fresh(self) -> float:
        """Of an answer by the policy."""
        return self.fresh_self + self.fresh_annotated

    @property
    def self_labelled(self) -> float:
        """Of a label by the policy."""
        return self.relabel + self.fresh_self

    def sources(self, seed: int, rollout: int, prompts: Sequence[EncodedPrompt]) -> list[Source]:
        """One for every prompt, by a uniform of its own: on any rank, in any order and after any resume the same."""
        return [self._source(uniform) for uniform in uniforms(seed, "route", rollout, prompts)]

    def _source(self, uniform: float) -> Source:
        bound = self.relabel
        if uniform < bound:
            return Source.RELABEL
        bound += self.fresh_self
        if uniform < bound:
            return Source.FRESH_SELF
        return Source.FRESH_ANNOTATED if uniform < bound + self.fresh_annotated or not self.fixed else Source.FIXED


def uniforms(seed: int, name: str, rollout: int, prompts: Sequence[EncodedPrompt]) -> list[float]:
    """One number in [0, 1) for every prompt, a function of seed, name, rollout, the prompt's id and its occurrence."""
    return [derived_seed(seed, name, rollout, prompt.prompt.id, prompt.occurrence) / 2**56 for prompt in prompts]
