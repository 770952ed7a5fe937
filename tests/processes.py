"""What several processes do to one file, and what is left when one is killed: ``python -m tests.processes FOLDER`` prints it as JSON.

A child says what is committed through a pipe, so that whoever killed it knows what it had a right to.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from lit_align.data.ledger import Ledger
from lit_align.data.spend import Price
from lit_align.storage import Store, connect

KEYS, BATCH, WRITERS = 400, 8, 3


def text_of(writer: int, key: int) -> str:
    return f"writer {writer}, key {key}"


def fork(work: Callable[[Callable[[str], None]], None]) -> tuple[int, int]:
    """A child that does ``work(say)``; its number, and the end of the pipe where it is heard."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        code = 1
        try:
            work(lambda line: os.write(write, f"{line}\n".encode()) and None)
            code = 0
        finally:
            os._exit(code)
    os.close(write)
    return child, read


def heard(pipe: int, kill: int | None = None, after: int = 0) -> list[str]:
    """The whole lines that come until the other end is closed; with ``kill``, that process is killed after so many."""
    said = b""
    while more := os.read(pipe, 4096):
        said += more
        if kill is not None and said.count(b"\n") >= after:
            os.kill(kill, signal.SIGKILL)
            kill = None
    return said.decode().split("\n")[:-1]


def several_writers(path: Path) -> dict[str, object]:
    """All make the file and write overlapping keys at the same time; the first, which would not end, is killed after a few batches."""

    def write(writer: int) -> Callable[[Callable[[str], None]], None]:
        def work(say: Callable[[str], None]) -> None:
            store = Store(path)
            for start in range(0, KEYS if writer else 10**6, BATCH):
                keys = list(range(start + writer, start + writer + BATCH))
                store.put({key.to_bytes(4): text_of(writer, key) for key in keys})
                say(json.dumps(keys))

        return work

    children = [fork(write(writer)) for writer in range(WRITERS)]
    said = [heard(pipe, kill=None if writer else child, after=5) for writer, (child, pipe) in enumerate(children)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    acknowledged = {key for lines in said for line in lines for key in json.loads(line)}
    store = Store(path)
    found = store.get([key.to_bytes(4) for key in acknowledged])
    store.close()
    wrong = [text for key, text in found.items() if text not in {text_of(w, int.from_bytes(key)) for w in range(WRITERS)}]
    connection = connect(path)
    check = connection.execute("PRAGMA quick_check").fetchone()[0]
    connection.close()
    return {"codes": codes, "acknowledged": len(acknowledged), "lost": len(acknowledged) - len(found), "wrong": wrong, "check": check}


def killed_while_asking(folder: Path) -> dict[str, object]:
    """Killed with one attempt under way; what the next process knows."""
    prices = {"m": Price(prompt=1.0, completion=3.0)}

    def work(say: Callable[[str], None]) -> None:
        ledger = Ledger(folder, 0, 1, prices)
        for i in range(10**6):
            attempt = ledger.sent(f"question {i}", "m")
            say(f"sent {i}")
            ledger.answered(attempt, f"answer {i}", 10, 1, 0.1)
            say(f"answered {i}")

    child, pipe = fork(work)
    said = heard(pipe, kill=child, after=101)
    os.waitpid(child, 0)
    sent, answered = ([line.split()[1] for line in said if line.startswith(word)] for word in ("sent", "answered"))
    ledger = Ledger(folder, 0, 1, prices)
    recalled = [ledger.recall(f"question {i}") for i in answered]
    spend, hits = ledger.spend(), len(recalled)
    next_one = ledger.sent("another", "m")
    ledger.close()
    return {
        "sent": len(sent),
        "answered": len(answered),
        "lost": [i for i, answer in zip(answered, recalled, strict=True) if answer != f"answer {i}"],
        "invented": Ledger(folder, 0, 1, prices).recall(f"question {len(sent) + 1}"),
        "hits": [hits, spend.hits],
        "calls": spend.calls,
        "answers": spend.answers,
        "maybe_paid": spend.maybe_paid,
        "tokens": spend.tokens,
        "price": spend.price,
        "money": spend.money,
        "next": next_one,
    }


def two_ledgers(folder: Path) -> dict[str, object]:
    """Two processes on the same rank's file: nobody's attempt is another's."""
    each = 200

    def ask(who: int) -> Callable[[Callable[[str], None]], None]:
        def work(say: Callable[[str], None]) -> None:
            ledger = Ledger(folder, 0, 1, {})
            ledger.unpriced.add("m")  # nobody has to be told
            for i in range(each):
                ledger.answered(ledger.sent(f"{who}: {i}", "m"), f"to {who}: {i}", 1 + who, 1, 0.1)
            ledger.close()

        return work

    children = [fork(ask(who)) for who in range(2)]
    for _, pipe in children:
        heard(pipe)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child, _ in children]
    ledger = Ledger(folder, 0, 1, {})
    right = [ledger.recall(f"{who}: {i}") == f"to {who}: {i}" for who in range(2) for i in range(each)]
    spend = ledger.spend()
    ledger.close()
    return {"codes": codes, "right": sum(right), "asked": 2 * each, "calls": spend.calls, "prompt_tokens": spend.prompt_tokens}


if __name__ == "__main__":
    root = Path(sys.argv[1])
    found = {
        "writers": several_writers(root / "store.sqlite"),
        "killed": killed_while_asking(root / "killed"),
        "together": two_ledgers(root / "together"),
    }
    print(json.dumps(found))
