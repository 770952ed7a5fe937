"""Strings that end a response, looked for in the text that its tokens make and not among the tokens."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from lit_align.types import Policy, Prompt, UserError

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what bytes that make no whole character decode to


def checked_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """The same strings, if none of them could never end a response, or would end every one.

    Raises:
        UserError: if ``stop`` is no sequence of texts, or one of them is empty or no valid text.
    """
    if isinstance(stop, str):
        raise UserError(f"The sampler's stop should be a list of texts, got {stop!r}. Write [{stop!r}].")
    for text in stop:
        if not isinstance(text, str) or not text or BROKEN in text:
            raise UserError(f"Each text in the sampler's stop should have at least one character, and only whole ones, got {text!r}.")
    return tuple(stop)


@final
class StopStrings:
    """Follows the responses of one call of a sampler, and says which of them a stop string has just ended.

    A response ends with the first token after which its text contains a stop string: in the middle of that token, several tokens after
    the string began, or with the last byte of a character, it makes no difference. A row is judged by its own tokens only.

    A special token is left out of texts, and so are the characters of its name; one that is named as a stop string ends a response
    as an end of sequence does.

    Args:
        stop: the strings; without any, nothing is decoded.
        policy: decodes.
        responses: how many rows will be followed.

    Attributes:
        tokens: special tokens that are stop strings.

    Raises:
        UserError: if a string is a mixture of special tokens and text, or of several special tokens.
    """

    def __init__(self, stop: Sequence[str], policy: Policy, responses: int) -> None:
        self._policy = policy
        tokens = {text: _special_token(text, policy) for text in stop}
        self.tokens = frozenset(token for token in tokens.values() if token is not None)
        self._texts = [text for text, token in tokens.items() if token is None]
        # In bytes, since each byte of a half-written character may be a character of the decoded text.
        self._reach = max((len(text.encode()) for text in self._texts), default=0)
        self._written: list[list[int]] = [[] for _ in range(responses if self._texts else 0)]

    def ended(self, rows: Tensor, drawn: Tensor) -> Tensor:
        """Take one more token ``[N]`` of each of ``rows`` ``[N]``, and say whose text has a stop string now, bool ``[N]``."""
        found = torch.zeros_like(drawn, dtype=torch.bool)
        if self._texts:
            for i, (row, token) in enumerate(zip(rows.tolist(), drawn.tolist(), strict=True)):
                self._written[row].append(token)
                found[i] = self._stops(self._written[row])
        return found

    def cut(self, text: str) -> str:
        """What stands before the first stop string."""
        return text[: min((start for stop in self._texts if (start := text.find(stop)) >= 0), default=len(text))]

    def _stops(self, tokens: Sequence[int]) -> bool:
        """Whether the last token completes a stop string. Few tokens are decoded to deny it, all of them to confirm it."""
        return self._in(self._end(tokens)) and self._in(self._policy.decode(tokens))

    def _end(self, tokens: Sequence[int]) -> str:
        """The end of the text, in which every stop string that the last token completes begins and ends.

        Before that token it has at least ``_reach`` characters, more than what such a string could have there, and the first of
        them is whole: the bytes of a character, and in some tokenizers those of all its neighbours, can't be read without the first.
        """
        count = self._reach
        while count < len(tokens) - 1:
            before = self._policy.decode(tokens[-count - 1 : -1])
            if len(before) >= self._reach and not before.startswith(BROKEN):
                break
            count *= 2
        return self._policy.decode(tokens[-count - 1 :])

    def _in(self, text: str) -> bool:
        return any(stop in text for stop in self._texts)


def _special_token(text: str, policy: Policy) -> int | None:
    """The special token that ``text`` names, None if it is an ordinary text."""
    tokens = policy.encode_response(Prompt(id=0, content=""), text)[:-1]  # without the EOS that ends every answer
    special = [token for token in tokens if token in policy.special_ids]
    if len(special) > 1 or (special and policy.decode(tokens)):
        raise UserError(
            f"The sampler's stop has {text!r}, in which a special token stands beside something else: texts leave special tokens out, "
            "so it would never be found. Name the special token alone, or the text alone."
        )
    return special[0] if special else None
