"""Rules that decide whether a response is right, without a model."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import final

from lit_align.types import Prompt, UserError

Rule = Callable[[Prompt, str], bool | float | None]
"""From a prompt and a response to whether it is right, or how right; None where that can't be decided. A function of yours, or one
of the classes here."""

# A digit group of "1,234,567" or plain digits, a fraction of them, an exponent of at most three digits: 1e999999999 would fill the memory.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)"
_NUMBER = re.compile(rf"(?:(?<![\w.)])[-+−])?(?:{_DIGITS}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}}(?!\d)|\s?/\s?{_DIGITS}(?!\.\d))?")


class ReferenceRule(ABC):
    """A rule that compares a response with the prompt's reference answer: right if it agrees with any of them.

    The references are ``prompt.reference`` and those listed in ``prompt.meta["references"]``; without any nothing can be decided.
    """

    @final
    def __call__(self, prompt: Prompt, response: str) -> bool | None:
        """Whether the response agrees with a reference; None if there is none."""
        references = [*([] if prompt.reference is None else [prompt.reference]), *map(str, prompt.meta.get("references") or ())]
        return any(self.agrees(reference, response) for reference in references) if references else None

    @abstractmethod
    def agrees(self, reference: str, response: str) -> bool:
        """Whether this response says what this reference says."""


@final
@dataclass(frozen=True, slots=True)
class Exact(ReferenceRule):
    """The response is the reference, apart from white space around it and, with ``ignore_case``, capitals."""

    ignore_case: bool = False

    def agrees(self, reference: str, response: str) -> bool:
        """See the class."""
        return _cased(response.strip(), self.ignore_case) == _cased(reference.strip(), self.ignore_case)


@final
@dataclass(frozen=True, slots=True)
class Contained(ReferenceRule):
    """The reference is somewhere in the response, as whole words and, with ``ignore_case``, whatever the capitals."""

    ignore_case: bool = True

    def agrees(self, reference: str, response: str) -> bool:
        """See the class."""
        wanted = re.escape(_cased(reference.strip(), self.ignore_case))
        return re.search(rf"(?<!\w){wanted}(?!\w)", _cased(response, self.ignore_case)) is not None


@final
@dataclass(frozen=True, slots=True)
class Numeric(ReferenceRule):
    """The last number of the response is the last number of the reference, to ``tolerance * max(1, |reference|)``.

    Numbers may have a sign, thousands separators (``1,234.5``), an exponent, or be fractions (``3/4``), which are compared exactly. Units
    and percent signs are not read: 50% is 50. Beside a reference without a number nothing can be decided.

    Raises:
        UserError: if ``tolerance`` is negative.
    """

    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        if not self.tolerance >= 0:
            raise UserError(f"Numeric: tolerance should be at least 0, got {self.tolerance}.")

    def agrees(self, reference: str, response: str) -> bool:
        """See the class."""
        expected, found = last_number(reference), last_number(response)
        if expected is None:
            raise ValueError(f"no number in the reference {reference[:80]!r}")
        return found is not None and abs(found - expected) <= Fraction(self.tolerance) * max(1, abs(expected))


@final
@dataclass(frozen=True, slots=True)
class Regex:
    r"""The pattern is found in the response; ``{reference}`` in it stands for the prompt's reference answer, literally.

    A pattern without it needs no reference; with it and without a reference, nothing can be decided. ``^`` and ``$`` are ends of lines.

    Raises:
        UserError: if it is no regular expression.

    >>> Regex(r"^Answer: {reference}$")(Prompt(0, "2 * 3.5?", reference="7.0"), "Well.\nAnswer: 7.0")
    True
    """

    pattern: str

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern.replace("{reference}", "x"))
        except re.error as error:
            raise UserError(f"Regex: pattern should be a regular expression, got {self.pattern!r}: {error}.") from error

    def __call__(self, prompt: Prompt, response: str) -> bool | None:
        """Whether the pattern is found; None if it needs a reference and there is none."""
        if "{reference}" in self.pattern and prompt.reference is None:
            return None
        pattern = self.pattern.replace("{reference}", re.escape(prompt.reference or ""))
        return re.search(pattern, response, re.MULTILINE) is not None


def last_number(text: str) -> Fraction | None:
    """The last number in a text, exactly; None if there is none.

    >>> [str(last_number(text)) for text in ("It costs $1,234.50.", "so x = -3/4", "5-3", "none")]
    ['2469/2', '-3/4', '3', 'None']
    """
    for found in reversed(_NUMBER.findall(text)):
        digits = found.replace(",", "").replace("−", "-").replace(" ", "")
        try:
            return Fraction(digits)
        except (ValueError, ZeroDivisionError):  # more digits than Python reads, or n/0
            continue
    return None


def _cased(text: str, ignore_case: bool) -> str:
    return text.casefold() if ignore_case else text
