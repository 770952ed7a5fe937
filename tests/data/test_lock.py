"""Two live processes don't share a run's folder; a dead one is in nobody's way."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from lit_align.annotators import FunctionAnnotator
from lit_align.data.lock import lock_run
from lit_align.types import UserError
from tests.tiny import make_dar, make_data, make_trainer, write_tiny

HOLDER = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print('held', flush=True); sys.stdin.read()"
TAKER = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(blocking=False)"


@contextmanager
def another_process(folder: Path) -> Iterator[None]:
    """Holds the folder, and is killed at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder / "lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "held\n"
        yield
    finally:
        process.kill()
        process.communicate()


def can_be_taken(folder: Path) -> bool:
    done = subprocess.run([sys.executable, "-c", TAKER, str(folder / "lock")], capture_output=True, check=False)
    return done.returncode == 0


def test_a_held_folder_is_refused_until_its_holder_is_killed(tmp_path: Path) -> None:
    with another_process(tmp_path), pytest.raises(UserError, match=r"still alive works in .*another folder \(--run\)"):
        lock_run(tmp_path)
    lock_run(tmp_path).release()


def test_whoever_asks_in_one_process_holds_one_lock(tmp_path: Path) -> None:
    first, second = lock_run(tmp_path / "run"), lock_run(tmp_path / "run")
    first.release()
    assert not can_be_taken(tmp_path / "run")
    second.release()
    assert can_be_taken(tmp_path / "run")


def test_a_fit_holds_its_folder_while_it_lives(tmp_path: Path) -> None:
    model, taken = write_tiny(tmp_path / "model"), []

    def score(prompt, responses):
        taken.append(can_be_taken(tmp_path / "run"))
        return [float(len(text)) for text in responses]

    def fit(trainer: Trainer) -> None:
        trainer.fit(make_dar(model), make_data(annotator=FunctionAnnotator(score), prompts_per_rollout=4))

    with another_process(tmp_path / "run"), pytest.raises(UserError, match="still alive"):
        fit(make_trainer(tmp_path / "run", max_epochs=1))
    assert not taken
    assert not (tmp_path / "run" / "journal").exists(), "the journal of the other one is not even opened"
    fit(make_trainer(tmp_path / "run", max_epochs=1))
    assert taken == [False] * 4
    assert can_be_taken(tmp_path / "run")
