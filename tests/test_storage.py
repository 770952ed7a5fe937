"""A file that several processes write and one of them is killed over."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lit_align.storage import AT_ONCE, Store, connect, digest
from lit_align.types import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What processes left behind."""
    if sys.platform == "win32":
        pytest.skip("there is no fork")
    folder = str(tmp_path_factory.mktemp("processes"))
    command = [sys.executable, "-W", "ignore", "-m", "tests.processes", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_nothing_acknowledged_is_lost_when_a_writer_is_killed(left: dict[str, Any]) -> None:
    writers = left["writers"]
    assert writers["codes"] == [-9, 0, 0], "the others went on"
    assert writers["acknowledged"] > 300
    assert writers["lost"] == 0
    assert writers["wrong"] == []
    assert writers["check"] == "ok"


def test_an_attempt_of_a_killed_process_may_be_paid_and_its_answers_are_known(left: dict[str, Any]) -> None:
    killed = left["killed"]
    assert killed["answered"] >= 50
    assert killed["lost"] == []
    assert killed["invented"] is None
    assert killed["hits"][0] == killed["hits"][1] == killed["answered"]
    assert killed["sent"] <= killed["calls"] <= killed["sent"] + 1, "every attempt that was said, and at most one that was not"
    assert killed["answered"] <= killed["answers"] <= killed["answered"] + 1
    assert killed["maybe_paid"] == killed["calls"] - killed["answers"]
    assert killed["tokens"] == pytest.approx(killed["calls"] * 11), "one that may be paid for counts as an average one"
    assert killed["price"] == pytest.approx(killed["answers"] * 13e-6)
    assert killed["money"] == pytest.approx(killed["calls"] * 13e-6)
    assert killed["next"] == killed["calls"] + 1, "and the file goes on"


def test_two_processes_on_one_ledger(left: dict[str, Any]) -> None:
    together = left["together"]
    assert together["codes"] == [0, 0]
    assert together["right"] == together["asked"] == together["calls"]
    assert together["prompt_tokens"] == 200 * 1 + 200 * 2


def test_the_first_text_of_a_key_stays(tmp_path: Path) -> None:
    store = Store(tmp_path / "new" / "store.sqlite")
    store.put({b"a": "first", b"b": "other"})
    store.put({b"a": "second", b"c": "third"})
    assert store.get([b"a", b"c", b"none"]) == {b"a": "first", b"c": "third"}
    many = {digest(str(i)): str(i) for i in range(2 * AT_ONCE + 3)}
    store.put(many)
    assert store.get([*many, b"b"]) == many | {b"b": "other"}
    assert store.get([]) == {}
    store.close()


def test_a_file_that_is_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "labels.sqlite"
    file.write_text("not a database, " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="file is not a database"):
        Store(file)
    with pytest.raises(UserError, match="should be an SQLite database"):
        connect(file / "inside.sqlite")


def test_digests_tell_texts_apart() -> None:
    assert digest("a") == digest("a") != digest("b")
    assert digest("\ud800") != digest("?"), "half a surrogate pair is a text too"
