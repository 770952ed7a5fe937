"""Questions to a server, some at once, each repeated until it is answered; the meter is told of every attempt."""

import asyncio
import random
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lit_align.annotators.attempt import Question, Unanswered, complete
from lit_align.metering import Meter
from lit_align.types import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

LONGEST_PAUSE = 30.0  # seconds between two attempts, where the server does not ask for more


@final
@dataclass(frozen=True, slots=True)
class Patience:
    """How long and how often to try.

    Args:
        timeout: seconds for one attempt.
        max_retries: attempts after the first.
        max_paid_retries: attempts after the first that may have been paid for.
        max_wait: the longest wait that a server may ask for, in seconds.
        first_pause: seconds before the first retry; doubled for each further one, then shortened by up to a half at random.
    """

    timeout: float
    max_retries: int
    max_paid_retries: int
    max_wait: float
    first_pause: float = 0.5

    def pause(self, failures: int, wanted: float | None) -> float:
        """Seconds to wait after so many failures; never less than the server asked for."""
        share = random.SystemRandom().uniform(0.5, 1.0)  # the run's own generators are not touched
        return (wanted or 0.0) + min(self.first_pause * 2 ** (0 if wanted else failures - 1), LONGEST_PAUSE) * share


@final
class Calls:
    """Asks one server.

    A question whose attempts are used up has no answer. Unless others were answered meanwhile it is the server that has none, and the
    run ends, so that an outage does not become labels.

    Args:
        client: an open client that does not retry by itself.
        meter: who is told, and who may know an answer already.
        patience: when to give up.
        concurrency: calls at once.
        key_name: where the key comes from, for messages.

    Attributes:
        unanswered: why questions have no answer, one reason for each.
    """

    def __init__(self, client: "AsyncOpenAI", meter: Meter, patience: Patience, concurrency: int, key_name: str | None) -> None:
        self.client, self.meter, self.patience, self.key_name = client, meter, patience, key_name
        self.unanswered: list[str] = []
        self._gate, self._over = asyncio.Semaphore(concurrency), asyncio.Event()
        self._answered = 0

    async def ask(self, question: Question) -> str | None:
        """What was kept of the answer, now or when it was asked before; None if there is none.

        Raises:
            UserError: if the server answers nobody, asks to wait too long, or wants something changed. No further call begins after
                that; those under way are waited for, as they will be paid for.
        """
        for key in (question.key, question.old_key):
            remembered = self.meter.recall(key)
            if remembered is not None:
                return remembered
        async with self._gate:
            try:
                return await self._until_answered(question)
            except Exception:  # no Unanswered
                self._over.set()
                raise

    async def _until_answered(self, question: Question) -> str | None:
        answered_before, failures, paid = self._answered, 0, 0
        while not self._over.is_set():
            try:
                return await self._attempt(question)
            except Unanswered as error:
                failures, paid = failures + 1, paid + error.paid
                if error.again and failures <= self.patience.max_retries and paid <= self.patience.max_paid_retries:
                    await self._wait(failures, error)
                    continue
                if error.again and self._answered == answered_before:
                    raise self._gone(failures, error) from None
                self.unanswered.append(str(error))
                return None
        return None

    async def _attempt(self, question: Question) -> str:
        attempt, start = self.meter.sent(question.key, question.request["model"]), time.perf_counter()
        try:
            answered = await complete(self.client, question, self.patience.timeout, self.key_name)
        except BaseException as error:
            paid = error.paid if isinstance(error, Unanswered) else not isinstance(error, UserError)  # an interrupted one may be
            self.meter.failed(attempt, str(error) or type(error).__name__, time.perf_counter() - start, paid)
            raise
        self.meter.answered(attempt, *answered, time.perf_counter() - start)
        self._answered += 1
        return answered.answer

    async def _wait(self, failures: int, error: Unanswered) -> None:
        """Until the next attempt, or until it is over."""
        if error.wait is not None and error.wait > self.patience.max_wait:
            raise UserError(
                f"ChatAPI expected the server at {self.client.base_url} to take calls again within max_wait = {self.patience.max_wait:g} "
                f"s, but it asks to wait {error.wait:.0f} s ({error}). What was answered is kept: start the same command again later, ask "
                "less at once (concurrency), or raise max_wait."
            )
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), self.patience.pause(failures, error.wait))

    def _gone(self, failures: int, error: Unanswered) -> UserError:
        return UserError(
            f"ChatAPI expected an answer from the server at {self.client.base_url}, but got none in {failures} attempts, nor to any other "
            f"question meanwhile. The last time: {error}. What was answered is kept: start the same command again when the server is "
            "well, or raise timeout, max_retries or, if paying twice is no matter, max_paid_retries."
        )
