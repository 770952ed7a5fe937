"""How fast labels are found in, and committed to, the cache that runs share, beside a plain loop over the same database.

    python -m benchmarks.cache

Labels per second, the best of five rounds; K = 4 responses of about 200 characters to a prompt, 32 prompts at once.
"""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import final

import torch

from lit_align.annotators import Cached
from lit_align.data.ledger import Ledger
from lit_align.data.spend import Price
from lit_align.evaluation.answers import text_rollouts
from lit_align.storage import connect
from lit_align.types import Annotation, Annotator, Prompt, Rollouts

K, CHUNK = 4, 32


@final
class Lengths(Annotator):
    """A judge that costs nothing."""

    identity = "lengths"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        scores = torch.tensor([[len(text) / 7 for text in texts] for texts in rollouts.texts])
        return Annotation(scores=scores, valid=torch.ones_like(scores, dtype=torch.bool))


def chunk_of(start: int) -> Rollouts:
    """``CHUNK`` prompts from number ``start`` on, with answers of their own."""
    numbers = range(start, start + CHUNK)
    prompts = [Prompt(i, f"Summarise post {i}. " + "Once upon a time. " * 10) for i in numbers]
    return text_rollouts(prompts, [[f"{k} of {i} " + "a word or two " * 14 for k in range(K)] for i in numbers])


@dataclass(frozen=True)
class Rates:
    """Labels per second."""

    committed: float
    hits: float
    plain_committed: float
    plain_hits: float


def measure(folder: Path, chunks: int, clock: Callable[[], float] = perf_counter) -> Rates:
    """One round, with ``folder`` for its two files."""

    def seconds(work: Callable[[], object]) -> float:
        start = clock()
        work()
        return clock() - start

    asked, labels = [chunk_of(start) for start in range(0, chunks * CHUNK, CHUNK)], chunks * CHUNK * K
    cached = Cached(Lengths(), str(folder / "cache.sqlite"))
    cached.annotate(chunk_of(10**6))  # opens the file
    committed = seconds(lambda: [cached.annotate(chunk) for chunk in asked])
    hits = seconds(lambda: [cached.annotate(chunk) for chunk in asked])
    cached.close()
    assert cached.hits == labels

    source = connect(folder / "cache.sqlite")
    rows = source.execute("SELECT key, text FROM texts").fetchall()[:-CHUNK]
    found = seconds(lambda: [source.execute("SELECT text FROM texts WHERE key = ?", row[:1]).fetchone() for row in rows])
    source.close()
    plain = connect(folder / "plain.sqlite")
    plain.execute("CREATE TABLE texts (key BLOB PRIMARY KEY, text TEXT NOT NULL)")
    written = seconds(lambda: [plain.execute("INSERT INTO texts VALUES (?, ?)", row) for row in rows])
    plain.close()
    return Rates(labels / committed, labels / hits, labels / written, labels / found)


def ledger_rates(folder: Path, calls: int) -> tuple[float, float]:
    """Answered attempts, and known answers, per second."""
    ledger = Ledger(folder, 0, 1, {"m": Price(1.0, 1.0)})
    questions = [f"What about {i}? " * 20 for i in range(calls)]
    start = perf_counter()
    for question in questions:
        ledger.answered(ledger.sent(question, "m"), '{"logps": [-0.1, -2.3]}', 100, 1, 0.1)
    asked = perf_counter()
    for question in questions:
        ledger.recall(question)
    known = perf_counter()
    ledger.close()
    return calls / (asked - start), calls / (known - asked)


@contextmanager
def folders(count: int) -> Iterator[list[Path]]:
    """So many empty folders."""
    with tempfile.TemporaryDirectory() as root:
        made = [Path(root, str(i)) for i in range(count)]
        for folder in made:
            folder.mkdir()
        yield made


def main() -> None:
    """Print a table."""
    torch.set_num_threads(1)
    with folders(6) as (*rounds, last):
        rates = [measure(folder, 64) for folder in rounds]
        calls, known = ledger_rates(last, 5000)
    for name in ("hits", "committed"):
        ours, plain = (max(getattr(rate, prefix + name) for rate in rates) for prefix in ("", "plain_"))
        print(f"cache   {name:10} {ours:10,.0f} labels/s   plain loop {plain:10,.0f} labels/s   ratio {ours / plain:.2f}")
    print(f"ledger  {calls:,.0f} answered attempts/s, {known:,.0f} known answers/s")


if __name__ == "__main__":
    main()
