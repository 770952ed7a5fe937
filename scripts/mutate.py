"""Makes the mistakes of mutations.toml, one at a time in a copy of the package, and reports those that no test notices.

``python scripts/mutate.py [WORD ...]`` tries all of them, or those whose file or name has one of the words in it; it fails where a
mistake survives. Tests run until the first failure, in as many processes as there are cores; the heavy libraries are imported once.
"""

import io
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("lit_align", "callbacks", "docs", "tests", "pyproject.toml")  # docs: tests of models read them
SECONDS = 1200  # of one mutation; one that hangs is noticed too
PASSED, FAILED = 100, 101  # the exit code of a process whose tests pass, whose tests fail; anything else is an accident


@dataclass(frozen=True)
class Mutation:
    """A mistake: in ``file`` of lit_align, ``original`` becomes ``replacement``; ``first`` is the test most likely to notice."""

    file: str
    name: str
    original: str
    replacement: str
    first: str | None = None

    def applied(self, source: str) -> str:
        """The source with the mistake in it.

        Raises:
            ValueError: if the original text does not stand there exactly once, or the mistake is none.
        """
        if source.count(self.original) != 1 or self.original == self.replacement:
            raise ValueError(f"{self}: the original text stands there {source.count(self.original)} times, not once.")
        return source.replace(self.original, self.replacement)

    @property
    def tests(self) -> list[str]:
        """What may notice it, the quickest first."""
        package = self.file.split("/")[0]
        losses = ["tests/functional", "tests/algorithms/test_common.py", "tests/algorithms"]
        usual = losses if package in ("functional", "algorithms") else [f"tests/{package}"]
        doctests = f"lit_align/{self.file}"  # last: a file that no test has imported yet, pytest imports twice, with two of each class
        return [*([] if self.first is None else [self.first]), *usual, doctests]

    def __str__(self) -> str:
        return f"{self.file}: {self.name}"


def read(path: Path = Path(__file__).with_name("mutations.toml")) -> list[Mutation]:
    """The mutations of a file, in its order."""
    files = tomllib.loads(path.read_text(encoding="utf-8"))
    return [Mutation(file, name, *texts) for file, named in files.items() for name, texts in named.items()]


def survives(mutation: Mutation | None) -> tuple[bool, str]:
    """Whether all tests pass in spite of it, and what they said; None is the package as it is."""
    with tempfile.TemporaryDirectory() as folder:
        for name in COPIED:
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, Path(folder) / name)
        if mutation is not None:
            mutated = Path(folder) / "lit_align" / mutation.file
            mutated.write_text(mutation.applied(mutated.read_text(encoding="utf-8")), encoding="utf-8")
        tests = ["lit_align/functional", "tests/functional", "tests/algorithms"] if mutation is None else mutation.tests
        process = multiprocessing.get_context("forkserver").Process(target=_run_tests, args=(folder, tests))
        process.start()
        process.join(SECONDS)
        process.kill()
        process.join()
        log = Path(folder) / "log"
        said = log.read_text(encoding="utf-8") if log.exists() else ""
        if process.exitcode not in (PASSED, FAILED, -signal.SIGKILL):
            raise RuntimeError(f"{mutation}: the tests did not run (exit code {process.exitcode}).\n{said[-3000:]}")
        return process.exitcode == PASSED, said


def _run_tests(folder: str, tests: Sequence[str]) -> None:
    """In a process of its own."""
    import pytest

    os.chdir(folder)
    sys.path.insert(0, folder)
    os.environ |= {"PYTHONPATH": folder, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    with open("log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(io.StringIO()):
        code = pytest.main(
            ["-q", "-x", "-p", "no:cacheprovider", "--keep-duplicates", f"--basetemp={folder}/run", f"--rootdir={folder}", *tests]
        )
    import lit_align

    assert str(lit_align.__file__).startswith(folder), "another copy was tested"
    os._exit(PASSED + code)


def main(words: Sequence[str]) -> int:
    """0 where every mistake was noticed."""
    mutations = [m for m in read() if not words or any(word in str(m) for word in words)]
    multiprocessing.get_context("forkserver").set_forkserver_preload(["torch", "lightning.pytorch", "transformers", "datasets", "pytest"])
    passes, said = survives(None)
    if not passes:
        print(f"The tests fail without any mistake:\n{said[-3000:]}")
        return 1
    survivors, start = [], time.monotonic()
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for mutation, (survived, said) in zip(mutations, pool.map(survives, mutations), strict=True):
            noticed = next((line for line in said.splitlines() if line.startswith(("FAILED", "ERROR"))), "no test finished in time")
            print(f"SURVIVES  {mutation}" if survived else f"noticed   {mutation}: {noticed[:120]}", flush=True)
            survivors += [mutation] if survived else []
    print(f"{len(mutations)} mistakes, {len(survivors)} of them unnoticed, {(time.monotonic() - start) / 60:.0f} minutes")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
