"""Every attempt to ask somebody who may charge for it, on disk before it is sent, and every answer, on disk before it is used."""

import json
import sqlite3
import time
import warnings
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import final

import torch

from lit_align.data.spend import Price, Prices, Spend
from lit_align.metering import Meter
from lit_align.storage import connect, digest
from lit_align.types import UserError

TABLE = """
CREATE TABLE IF NOT EXISTS attempts (
    attempt INTEGER PRIMARY KEY,
    question BLOB NOT NULL,
    model TEXT NOT NULL,
    rollout INTEGER NOT NULL,
    sent REAL NOT NULL,
    outcome TEXT,
    paid INTEGER NOT NULL DEFAULT 1,
    answer TEXT,
    reason TEXT,
    prompt_tokens INTEGER NOT NULL DEFAULT 0,
    completion_tokens INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL DEFAULT 0
)
"""
TOTALS = """
SELECT model, COUNT(*), TOTAL(outcome IS 'failed'), TOTAL(outcome IS NOT 'answered' AND paid), TOTAL(outcome IS 'answered'),
       TOTAL(prompt_tokens), TOTAL(completion_tokens), TOTAL(seconds)
FROM attempts WHERE rollout = :rollout OR :rollout IS NULL GROUP BY model
"""


@final
class Ledger(Meter):
    """The meter of a run, or of an evaluation: a table ``attempts`` per rank, ``calls-{rank}.sqlite``, made when something is asked first.

    An attempt without an outcome was sent and never heard of: it may have been paid for, whether it is still under way or its process
    was killed. What is committed outlives the process; a power cut may take the last moments. At opening every rank
    reads the answers in the files of all ranks, so that the number of ranks may change between runs; it then writes to its own file
    only. Open it on all ranks before the first of them asks.

    Args:
        folder: where the files are.
        rank, world_size: whose file to write; the first rank also counts what ranks that are no longer there have spent.
        prices: of models.
        money_matters: a model without a price is then refused, before it is asked.
        setting: where a user sets prices, for messages.

    Attributes:
        rollout: to which attempts are attributed from now on.
        unpriced: models that were asked, or would have been, and have no price.

    Raises:
        UserError: if a file is no ledger.
    """

    def __init__(
        self,
        folder: Path,
        rank: int,
        world_size: int,
        prices: Prices,
        money_matters: bool = False,
        setting: str = "data.init_args.prices",
    ) -> None:
        self._path, self._rank, self._prices = folder / f"calls-{rank}.sqlite", rank, prices
        self._money_matters, self._setting = money_matters, setting
        self.rollout = 0
        self.unpriced: set[str] = set()
        self._lock = Lock()
        self._own: sqlite3.Connection | None = None
        self._answers: dict[bytes, str] = {}
        self._hits: Counter[int] = Counter()  # by rollout
        self._reused: Counter[int] = Counter()
        self._left_behind = Spend()  # by ranks that are no longer there
        for path in sorted(folder.glob("calls-*.sqlite")):
            connection = _opened(path)
            self._answers.update(connection.execute("SELECT question, answer FROM attempts WHERE outcome = 'answered' ORDER BY attempt"))
            if rank == 0 and int(path.stem.removeprefix("calls-")) >= world_size:
                self._left_behind += _spend(connection, None, prices)
            connection.close()

    def recall(self, question: str) -> str | None:
        """What was answered to this question before, by whatever process of the run."""
        with self._lock:
            answer = self._answers.get(digest(question))
            if answer is not None:
                self._hits[self.rollout] += 1
        return answer

    def sent(self, question: str, model: str) -> int:
        """See `Meter.sent`.

        Raises:
            UserError: if the model has no price, and there is a budget of money.
        """
        if model not in self._prices and model not in self.unpriced:
            self._say_unpriced(model)
        with self._lock:
            self._own = self._own or _opened(self._path)
            row = (digest(question), model, self.rollout, time.time())
            cursor = self._own.execute("INSERT INTO attempts (question, model, rollout, sent) VALUES (?, ?, ?, ?)", row)
            assert cursor.lastrowid is not None
            return cursor.lastrowid

    def answered(self, attempt: int, answer: str, prompt_tokens: int, completion_tokens: int, seconds: float) -> None:
        """See `Meter.answered`."""
        row = ("answered", True, answer, None, prompt_tokens, completion_tokens, seconds, attempt)
        with self._lock:
            self._answers[self._close_attempt(row)] = answer

    def failed(self, attempt: int, reason: str, seconds: float, paid: bool) -> None:
        """See `Meter.failed`."""
        with self._lock:
            self._close_attempt(("failed", paid, None, reason, 0, 0, seconds, attempt))

    def reused(self, labels: int) -> None:
        """See `Meter.reused`. Counted by this process, and not kept."""
        with self._lock:
            self._reused[self.rollout] += labels

    def spend(self, rollout: int | None = None) -> Spend:
        """Of this rank, for one rollout or, with None, for all of the run; hits and reused labels are those of this process."""
        with self._lock:
            if self._own is None and self._path.is_file():
                self._own = _opened(self._path)
            total = Spend() if self._own is None else _spend(self._own, rollout, self._prices)
            if rollout is None:
                return total + self._left_behind + Spend(hits=self._hits.total(), reused_labels=self._reused.total())
            return total + Spend(hits=self._hits[rollout], reused_labels=self._reused[rollout])

    def report(self, device: torch.device, rollout: int | None = None, **known: float) -> Spend:
        """What `spend` says, summed over all ranks, each of which must call this. If anybody was asked, the first rank adds it, after what
        else is ``known``, as a line to ``cost.jsonl`` beside the files.

        Args:
            device: that of the process group.
            rollout: whose cost it is; None for all.
            known: what else the line says.
        """
        total = self.spend(rollout).everyones(device)
        if total.happened and self._rank == 0:
            head = known if rollout is None else {"rollout": rollout, **known}
            line = head | {name.removeprefix("cost/"): value for name, value in total.metrics().items()}
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with (self._path.parent / "cost.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        return total

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._own is not None:
                self._own.close()
                self._own = None

    def _close_attempt(self, row: tuple[object, ...]) -> bytes:
        """Write what became of an attempt; its question."""
        self._own = self._own or _opened(self._path)
        columns = "outcome = ?, paid = ?, answer = ?, reason = ?, prompt_tokens = ?, completion_tokens = ?, seconds = ?"
        found = self._own.execute(f"UPDATE attempts SET {columns} WHERE attempt = ? RETURNING question", row).fetchall()
        if not found:
            raise ValueError(f"There is no attempt number {row[-1]}: an outcome is told once `sent` has given the number.")
        return found[0][0]

    def _say_unpriced(self, model: str) -> None:
        """Once per model: what is not known is not zero."""
        self.unpriced.add(model)
        known = f"there are prices of {', '.join(map(repr, self._prices))}" if self._prices else "there are no prices"
        remedy = f"Set {self._setting}, money per million tokens: {{{model}: {{prompt: ..., completion: ...}}}}"
        if self._money_matters:
            self.unpriced.discard(model)  # refused again, if it is asked again
            raise UserError(f"budget.money needs the price of {model!r}, which is asked for labels, but {known}. {remedy}.")
        warnings.warn(
            f"What {model!r} costs is not known ({known}): calls and tokens are counted, and cost/price is left out. {remedy}.",
            stacklevel=3,
        )


def _opened(path: Path) -> sqlite3.Connection:
    connection = connect(path)
    try:
        connection.execute(TABLE)
    except sqlite3.Error as error:
        raise UserError(f"{path} should be a run's ledger, but: {error}. Move it away, and what it knew is asked for again.") from error
    return connection


def _spend(connection: sqlite3.Connection, rollout: int | None, prices: Prices) -> Spend:
    """The sum over models."""
    total = Spend()
    for model, calls, failures, maybe, answers, read, written, seconds in connection.execute(TOTALS, {"rollout": rollout}):
        price, per_answer = prices.get(model, Price(0.0, 0.0)), maybe / max(answers, 1)
        total += Spend(
            calls=calls,
            failures=failures,
            maybe_paid=maybe,
            unpriced=0 if model in prices else calls,
            prompt_tokens=read,
            completion_tokens=written,
            seconds=seconds,
            answers=answers,
            price=price.of(read, written),
            maybe_tokens=(read + written) * per_answer,
            maybe_price=price.of(read, written) * per_answer,
        )
    return total
