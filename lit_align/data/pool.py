"""Which prompts of an indexed source a run reads, and in which order; what becomes of the long ones."""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Literal, final

import torch

from lit_align.data.loader import derived_seed
from lit_align.data.truncation import encode_within
from lit_align.types import EncodedPrompt, IndexedPrompts, Prompt, TextModel, UserError

LongPrompts = Literal["drop", "truncate_left", "refuse"]
"""What becomes of a prompt that leaves no room for the response: left out and counted, cut at its beginning (its BOS token, or its
system turn, stays), or an error."""


@final
class PromptEncoder:
    """Prompts as the model reads them.

    Args:
        model: its tokenizer decides how long they are.
        max_tokens: longest prompt, in tokens; None is no limit.
        long_prompts: what becomes of longer ones. Whatever is cut off, the annotator sees the whole prompt.

    Raises:
        UserError: if there is no room for any prompt.
    """

    def __init__(self, model: TextModel, max_tokens: int | None, long_prompts: LongPrompts) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.long_prompts: LongPrompts = long_prompts
        if max_tokens is not None and max_tokens < 1:
            raise UserError(
                f"No room for a prompt: {max_tokens} tokens are left of the context. Lower the sampler's `max_new_tokens` (for "
                "demonstrations: `max_response_tokens`)."
            )

    def fits(self, prompt: Prompt) -> bool:
        """Whether it is short enough, or can be made so."""
        return self.max_tokens is None or self._tokens(prompt) is not None

    @property
    def longer(self) -> str:
        """What a prompt is that does not fit, for people."""
        return f"longer than {self.max_tokens} tokens" + (" even with all turns cut that may be" if self._cuts else "")

    def length(self, prompt: Prompt) -> int:
        """Tokens of the whole prompt."""
        return len(self.model.encode(prompt))

    def encoded(self, prompt: Prompt) -> EncodedPrompt:
        """A prompt that fits, cut where it has to be."""
        return EncodedPrompt(prompt, tuple(self._tokens(prompt) or ()))  # never empty: of prompts that fit

    @property
    def _cuts(self) -> bool:
        return self.long_prompts == "truncate_left"

    def _tokens(self, prompt: Prompt) -> list[int] | None:
        """What the model reads; None if it is too long."""
        if self._cuts and self.max_tokens is not None:
            return encode_within(self.model, prompt, self.max_tokens)
        tokens = self.model.encode(prompt)
        return tokens if self.max_tokens is None or len(tokens) <= self.max_tokens else None


@final
class PromptPool:
    """The prompts of a source that fit into ``max_tokens``, read through one seeded permutation after another.

    Args:
        source: where they come from.
        model, max_tokens, long_prompts: see :class:`PromptEncoder`.
        seed: of the order.

    Raises:
        UserError: if no prompt is left, or one is too long under ``refuse``.
    """

    def __init__(self, source: IndexedPrompts, model: TextModel, max_tokens: int | None, long_prompts: LongPrompts, seed: int) -> None:
        self.source, self.seed = source, seed
        self._encoder = PromptEncoder(model, max_tokens, long_prompts)
        fits = [i for i in range(len(source)) if self._encoder.fits(source[i])]
        longer = self._encoder.longer
        self.dropped = len(source) - len(fits)
        self._rows = fits
        if self.dropped and long_prompts == "refuse":
            worst = max(range(len(source)), key=self._length)
            raise UserError(
                f"{self.dropped} of {len(source)} prompts are longer than {max_tokens} tokens; the longest, row {worst}, has "
                f"{self._length(worst)}. Set `long_prompts` to drop or truncate_left, or raise `max_prompt_tokens`."
            )
        if not fits:
            remedy = "Shorten the system turns" if long_prompts == "truncate_left" else "Set `long_prompts: truncate_left`"
            raise UserError(
                f"All {len(source)} prompts are {longer}. {remedy}, lower the sampler's `max_new_tokens` (for demonstrations: "
                "`max_response_tokens`), or choose a policy with a longer context."
            )
        if self.dropped:
            share = self.dropped / len(source)
            warnings.warn(f"{self.dropped} of {len(source)} prompts ({share:.1%}) are {longer} and dropped.", stacklevel=2)

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, start: int, count: int) -> list[EncodedPrompt]:
        """Prompts number ``start`` to ``start + count`` of the endless reading; a repeated one is the next ``occurrence``."""
        turns = {turn: self._order(turn) for turn in range(start // len(self), (start + count - 1) // len(self) + 1)}
        rows = [turns[i // len(self)][i % len(self)] for i in range(start, start + count)]
        return numbered([self._encoder.encoded(self.source[row]) for row in rows])

    def in_order(self) -> list[EncodedPrompt]:
        """Every prompt once, as the source has them: for evaluation."""
        return numbered([self._encoder.encoded(self.source[row]) for row in self._rows])

    def _order(self, turn: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", turn))
        return [self._rows[i] for i in torch.randperm(len(self), generator=generator).tolist()]

    def _length(self, row: int) -> int:
        return self._encoder.length(self.source[row])


def numbered(prompts: Iterable[EncodedPrompt]) -> list[EncodedPrompt]:
    """The same prompts, each with the number of times that it came before among them."""
    seen: Counter[int] = Counter()
    found = []
    for prompt in prompts:
        found.append(replace(prompt, occurrence=seen[prompt.prompt.id]))
        seen[prompt.prompt.id] += 1
    return found
