"""Which prompts a run reads, and in which order."""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal, final

import torch

from lit_align.data.loader import derived_seed
from lit_align.data.truncation import encode_within
from lit_align.types import EncodedPrompt, Policy, Prompt, PromptSource, UserError

LongPrompts = Literal["drop", "truncate_left", "refuse"]
"""What becomes of a prompt that leaves no room for the response: left out and counted, cut at its beginning (its BOS token, or its
system turn, stays), or an error."""


@final
class PromptPool:
    """The prompts of a source that fit into ``max_tokens``, read through one seeded permutation after another.

    Args:
        source: where they come from.
        policy: its tokenizer decides how long they are.
        max_tokens: longest prompt, in tokens; None is no limit.
        long_prompts: what becomes of longer ones. Whatever is cut off, the annotator sees the whole prompt.
        seed: of the order.

    Raises:
        UserError: if no prompt is left, or one is too long under ``refuse``.
    """

    def __init__(self, source: PromptSource, policy: Policy, max_tokens: int | None, long_prompts: LongPrompts, seed: int) -> None:
        self.source, self.policy, self.max_tokens, self.seed = source, policy, max_tokens, seed
        if max_tokens is not None and max_tokens < 1:
            raise UserError(
                f"No room for a prompt: {max_tokens} tokens are left of the context. Lower the sampler's `max_new_tokens` (for "
                "demonstrations: `max_response_tokens`)."
            )
        self._cut = long_prompts == "truncate_left"
        fits = [i for i in range(len(source)) if max_tokens is None or self._tokens(source[i]) is not None]
        longer = f"longer than {max_tokens} tokens" + (" even with all turns cut that may be" if self._cut else "")
        self.dropped = len(source) - len(fits)
        self._rows = fits
        if self.dropped and long_prompts == "refuse":
            worst = max(range(len(source)), key=self._length)
            raise UserError(
                f"{self.dropped} of {len(source)} prompts are longer than {max_tokens} tokens; the longest, row {worst}, has "
                f"{self._length(worst)}. Set `long_prompts` to drop or truncate_left, or raise `max_prompt_tokens`."
            )
        if not fits:
            remedy = "Shorten the system turns" if self._cut else "Set `long_prompts: truncate_left`"
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
        return _numbered([self._encoded(self.source[row]) for row in rows])

    def in_order(self) -> list[EncodedPrompt]:
        """Every prompt once, as the source has them: for evaluation."""
        return _numbered([self._encoded(self.source[row]) for row in self._rows])

    def _order(self, turn: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", turn))
        return [self._rows[i] for i in torch.randperm(len(self), generator=generator).tolist()]

    def _length(self, row: int) -> int:
        return len(self.policy.encode(self.source[row]))

    def _encoded(self, prompt: Prompt) -> EncodedPrompt:
        return EncodedPrompt(prompt, tuple(self._tokens(prompt) or ()))  # never empty: of rows that fit

    def _tokens(self, prompt: Prompt) -> list[int] | None:
        """What the policy reads; None if it is too long."""
        if self._cut and self.max_tokens is not None:
            return encode_within(self.policy, prompt, self.max_tokens)
        tokens = self.policy.encode(prompt)
        return tokens if self.max_tokens is None or len(tokens) <= self.max_tokens else None


def _numbered(prompts: Sequence[EncodedPrompt]) -> list[EncodedPrompt]:
    seen: Counter[int] = Counter()
    numbered = []
    for prompt in prompts:
        numbered.append(replace(prompt, occurrence=seen[prompt.prompt.id]))
        seen[prompt.prompt.id] += 1
    return numbered
