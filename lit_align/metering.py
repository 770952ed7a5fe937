"""Who pays for a question, and which time it is asked: what a judge that costs money tells, whoever listens, of every attempt.

A backend asks `current_meter()`; whoever runs it says who that is by ``with metered(meter):``. Nothing has to be handed through
the annotators in between, and a backend outside any ``with`` is free of charge.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import final


class Meter(ABC):
    """Remembers questions and counts attempts. Safe to call from several threads.

    A question is a string that says all that its answer depends on: model, messages, settings of sampling, number of the draw. One that
    differs in any of these is another question.
    """

    @abstractmethod
    def recall(self, question: str) -> str | None:
        """What was answered to this question before, if anything; that is free."""

    @abstractmethod
    def sent(self, question: str, model: str) -> int:
        """An attempt is about to be sent; it is on disk when this returns. The number of the attempt."""

    @abstractmethod
    def answered(self, attempt: int, answer: str, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """It was answered; the answer is on disk when this returns."""

    @abstractmethod
    def failed(self, attempt: int, reason: str, seconds: float, paid: bool) -> None:
        """It has no answer. ``paid``: whether the other side may have done the work and charge for it (a time-out, a cut connection)."""

    def reused(self, labels: int) -> None:  # noqa: B027
        """So many labels were found in a cache, and nothing was asked for them."""


@final
class Unmetered(Meter):
    """Remembers and counts nothing."""

    def recall(self, question: str) -> str | None:
        """Nothing."""
        return None

    def sent(self, question: str, model: str) -> int:
        """Zero."""
        return 0

    def answered(self, attempt: int, answer: str, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """Ignored."""

    def failed(self, attempt: int, reason: str, seconds: float, paid: bool) -> None:
        """Ignored."""


_FREE = Unmetered()
_METER: ContextVar[Meter] = ContextVar("meter", default=_FREE)
_REPEAT: ContextVar[int] = ContextVar("repeat", default=0)


def current_meter() -> Meter:
    """Whom to tell. Other threads don't see it unless they are given it, or run in a copy of this context."""
    return _METER.get()


@contextmanager
def metered(meter: Meter) -> Iterator[None]:
    """Tell ``meter`` of every attempt made inside.

    >>> with metered(Unmetered()):
    ...     current_meter().recall("Which is better?")
    """
    token = _METER.set(meter)
    try:
        yield
    finally:
        _METER.reset(token)


def current_repeat() -> int:
    """Which time, from 0, the same is asked again on purpose. A backend that draws its answers makes it part of its question: an answer
    remembered from another time is not one to this."""
    return _REPEAT.get()


@contextmanager
def repeated(number: int) -> Iterator[None]:
    """Everything asked inside is asked for the ``number``-th time.

    >>> with repeated(2):
    ...     current_repeat()
    2
    """
    token = _REPEAT.set(number)
    try:
        yield
    finally:
        _REPEAT.reset(token)
