"""A rule for answers that are equal in mathematics, by a library that may take for ever."""

import atexit
import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import final

from lit_align.annotators.rules import ReferenceRule
from lit_align.types import UserError

PROGRAM = Path(__file__).with_name("equations.py")


@final
@dataclass(frozen=True, slots=True)
class Mathematical(ReferenceRule):
    r"""The response's answer is equal to the reference in mathematics, as the package ``math-verify`` finds and compares them.

    The reference is an expression, LaTeX or plain, or a text with one in dollars or ``\boxed``; beside one without an expression nothing
    can be decided. A response such as ``$7^{7^9}$`` would take longer than anybody can wait, so the package works in a process of its
    own, one for all who ask in this one, in whatever thread. (On systems with POSIX signals, which Windows is not.)

    Args:
        seconds: how long both may be read and compared before the response counts as wrong. The process has then ended, and the next
            question starts another.

    Raises:
        UserError: if the package is missing, or ``seconds`` is not positive.
    """

    seconds: float = 5

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise UserError(f"Mathematical: seconds should be positive, got {self.seconds}.")
        if find_spec("math_verify") is None:
            raise UserError('Mathematical compares by math-verify, which is not installed here: pip install "lit-align[math]"')

    def agrees(self, reference: str, response: str) -> bool:
        """See the class."""
        marked = reference if "$" in reference or "\\boxed" in reference else f"${reference}$"
        said = _LIBRARY.ask(json.dumps([marked, response, self.seconds]))
        if said == "null":
            raise ValueError(f"no expression in the reference {reference[:80]!r}")
        return said == "true"


@final
class _Library:
    """The process, started when it is asked. Safe for several threads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: str) -> str:
        """Its answer; nothing where it came to its end over it."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            said = ""
            try:
                with suppress(BrokenPipeError):
                    said = self._exchange(question)
            finally:
                if not said:  # an answer that still comes would be taken for the next one's
                    self.stop()
            return said

    def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            with suppress(BrokenPipeError), process:  # closes both pipes, and waits
                process.kill()

    def _start(self) -> None:
        self.stop()
        command = [sys.executable, "-P", str(PROGRAM)]  # -P: its neighbours are no modules of its own
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")
        if self._exchange() != "ready":
            self.stop()
            raise RuntimeError("math-verify did not start; what it wrote says why")

    def _exchange(self, question: str | None = None) -> str:
        process = self._process
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        if question is not None:
            print(question, file=process.stdin, flush=True)
        return process.stdout.readline().strip()


_LIBRARY = _Library()
atexit.register(_LIBRARY.stop)
