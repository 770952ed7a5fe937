"""What is judged is data: nothing in it can be taken for what surrounds it."""

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from itertools import pairwise
from typing import Any, final

_WRITTEN = re.compile(r"<<?/?[^\s<>{}()'\"=]{1,64}>>?|\[/?[A-Z_]+\]")  # "<|user|>", "</think>", "<<SYS>>", "[INST]"


@final
class Escape:
    r"""Puts a backslash into every place of a text that reads as one of some marks; any other text stays as it is, to the byte.

    A backslash more goes behind the first character of a mark, or of a mark that has backslashes there already, so that two texts never
    become one and taking a backslash out of each such place gives the text back. A place reads as a mark whatever its case, its spaces, the
    characters in it that nobody sees, and the width of its letters (compatibility forms, Unicode's NFKC), because some tokenizers and
    most language models read over these.

    Args:
        tags: tags without their last ``>``, such as ``</response``, escaped with anything behind them that does not prolong the name.
        tokens: strings of at least two characters, such as ``<|im_start|>``; shorter ones can't be broken and are left out.

    >>> Escape(["</response"], ["<|end|>"])("a < b </Response > <|end|> <\\|end|> <responses>")
    'a < b <\\/Response > <\\|end|> <\\\\|end|> <responses>'
    """

    def __init__(self, tags: Iterable[str] = (), tokens: Iterable[str] = ()) -> None:
        marks = [(mark, r"(?![\w-])") for mark in map(_folded, tags)] + [(mark, "") for mark in map(_folded, tokens)]
        rests: dict[str, set[str]] = {}
        for mark, end in marks:
            if len(mark) > 1:
                rests.setdefault(mark[0], set()).add(r"\s*".join(map(re.escape, mark[1:])) + end)
        places = (rf"{re.escape(first)}(?=[\s\\]*(?:{'|'.join(sorted(rest))}))" for first, rest in sorted(rests.items()))
        self._firsts, self._places = frozenset(rests), re.compile("|".join(places))

    def __call__(self, text: str) -> str:
        """The text, escaped."""
        return self.after("", text)

    def after(self, given: str, text: str) -> str:
        r"""``given`` with its marks, and the text behind it, escaped; so is a mark that both make together.

        >>> Escape(tokens=["<|end|>"]).after("Hello.<|end|> 1 <", "|end|> <|end|>")
        'Hello.<|end|> 1 <\\|end|> <\\|end|>'
        """
        whole, meant = given + text, set(self.places(given))
        ends = [0, *(place for place in self.places(whole) if place not in meant), len(whole)]
        return "\\".join(whole[start:end] for start, end in pairwise(ends))

    def places(self, text: str) -> list[int]:
        """Before which characters a backslash is due, in order."""
        if self._firsts.isdisjoint(unicodedata.normalize("NFKC", text).casefold()):
            return []
        read = [(folded, i + 1) for i, character in enumerate(text) for folded in _folded(character, keep_spaces=True)]
        found = self._places.finditer("".join(folded for folded, _ in read))
        return [read[match.start()][1] for match in found]


def special_strings(tokenizer: Any) -> set[str]:
    """What a tokenizer reads as special tokens, wherever it stands in a text."""
    return {token.content for token in tokenizer.added_tokens_decoder.values() if token.special} | set(tokenizer.all_special_tokens)


def control_strings(tokenizer: Any) -> set[str]:
    """What a tokenizer or its chat template takes for structure: special tokens, and what looks like one in the template."""
    return special_strings(tokenizer) | set(_WRITTEN.findall(str(tokenizer.chat_template or "")))


@lru_cache(maxsize=8192)
def _folded(text: str, keep_spaces: bool = False) -> str:
    """As a reader sees it who looks neither at case and width nor for what is invisible; spaces go as well, unless kept."""
    shown = unicodedata.normalize("NFKC", text).casefold()
    return "".join(c for c in shown if (keep_spaces and c.isspace()) or not (c.isspace() or unicodedata.category(c) in ("Cc", "Cf")))
