"""A meter that keeps everything in memory."""

from typing import final

from lit_align.metering import Meter


@final
class Notebook(Meter):
    """Remembers answers and writes down what it is told.

    Attributes:
        known: answers by question.
        told: of every attempt, in the order of their ends: ``answered``, ``failed`` or ``paid`` (failed, and maybe paid).
        reasons: of those that failed.
        tokens: prompt and completion tokens of those that were answered.
    """

    def __init__(self) -> None:
        self.known: dict[str, str] = {}
        self.told: list[str] = []
        self.reasons: list[str] = []
        self.tokens: list[tuple[int, int]] = []
        self.open: dict[int, str] = {}
        self.sent_so_far = 0

    def recall(self, question: str) -> str | None:
        return self.known.get(question)

    def sent(self, question: str, model: str) -> int:
        assert model in question
        self.sent_so_far += 1
        self.open[self.sent_so_far] = question
        return self.sent_so_far

    def answered(self, attempt: int, answer: str, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        assert seconds >= 0
        self.known[self.open.pop(attempt)] = answer
        self.tokens.append((prompt_tokens, completion_tokens))
        self.told.append("answered")

    def failed(self, attempt: int, reason: str, seconds: float, paid: bool) -> None:
        assert seconds >= 0
        del self.open[attempt]
        self.reasons.append(reason)
        self.told.append("paid" if paid else "failed")

    def everything(self) -> str:
        """All that a file of it would hold."""
        return repr([vars(self)[name] for name in ("known", "reasons", "told")])
