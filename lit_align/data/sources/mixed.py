"""Several datasets as one."""

import math
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import final

from lit_align.types import Prompt, PromptSource, UserError

RESERVED = {"mean", "std"}
"""``reward/<name>`` of a dataset is another quantity's."""


@final
class MixedPrompts(PromptSource):
    """Prompts of several sources, in fixed shares of every rollout.

    Each source is read in its own seeded order and begins again when it ends, so that a small one with a large weight repeats.
    While training, ``reward/<name>`` is the mean score of a source's responses. As an evaluation set, a mixture is every prompt
    of every source, whatever the weights, with ``val/reward/<name>``.

    Args:
        sources: each with a name of its own (a file's is the file's name; ``name`` of a source gives it another).
        weights: of every source, in the order of ``sources`` and any unit; equal if None. They may be changed when a run is resumed.

    Raises:
        UserError: if there is no source, a name is missing, taken twice or by a metric, or the weights are not one finite number
            of at least 0 for every source, with one above 0.
    """

    def __init__(self, sources: list[PromptSource], weights: list[float] | None = None) -> None:
        names = [source.name for source in sources]
        twice = [name for name, count in Counter(names).items() if count > 1 or not name]
        if not sources or twice:
            raise UserError(
                f"MixedPrompts: expected sources of different names, got {', '.join(map(repr, names)) or 'none'}: rows of the same number "
                "and name would share noise and labels. Set the `name` of a source."
            )
        if RESERVED & set(names):
            raise UserError(f"MixedPrompts: {names} has a name of a metric, reward/mean or reward/std. Set another `name` of that source.")
        if any(isinstance(source, MixedPrompts) for source in sources):
            raise UserError("MixedPrompts: expected sources that are no mixtures. List the sources of the inner one in the outer one.")
        weights = [1.0] * len(names) if weights is None else weights
        if len(weights) != len(names) or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            raise UserError(
                f"MixedPrompts: expected {len(names)} weights of at least 0, for {', '.join(map(repr, names))}, and one above 0, got "
                f"{weights}. Correct `weights`."
            )
        self.sources = dict(zip(names, sources, strict=True))
        self.shares = {name: weight / sum(weights) for name, weight in zip(names, weights, strict=True)}
        self.name = "+".join(names)

    def __iter__(self) -> Iterator[Prompt]:
        """Every prompt of every source, one source after the other."""
        return chain.from_iterable(self.sources.values())
