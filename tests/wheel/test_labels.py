"""A label is paid for once."""

import math
import subprocess
import sys
from pathlib import Path

from lit_align.data.journal import LabelJournal
from tests.wheel.harness import Scores, differing, fit, patchy

ROOT = Path(__file__).parents[2]


def test_labels_are_counted_valid_or_not(tiny: str, root: Path) -> None:
    metrics = fit(root, tiny, annotator=Scores(patchy)).recorder.metrics
    assert [m["labels/used"] for m in metrics] == [32.0, 64.0]
    assert all(m["labels/invalid"] > 4 for m in metrics)
    assert all(math.isfinite(m["reward/mean"]) for m in metrics)


def test_the_same_run_again_in_the_same_folder_asks_nothing(tiny: str, root: Path) -> None:
    first = fit(root, tiny, annotator=(asked := Scores()))
    again = fit(root, tiny, annotator=(asked_again := Scores()))
    assert len(asked.asked) == 16
    assert asked_again.asked == []
    assert differing(first.state, again.state) == []
    assert [m["labels/used"] for m in again.recorder.metrics] == [64.0, 64.0]


def test_other_samples_are_other_labels(tiny: str, root: Path) -> None:
    fit(root, tiny)
    other = fit(root, tiny, annotator=(asked := Scores()), seed=1)
    assert len(asked.asked) == 16
    assert [m["labels/used"] for m in other.recorder.metrics] == [96.0, 128.0]


def test_the_journal_is_closed_where_a_fit_fails(tiny: str, root: Path) -> None:
    from tests.tiny import make_data
    from tests.wheel.harness import Killed

    def killed(*_: object) -> list[float]:
        raise Killed

    data = make_data(annotator=Scores(killed))
    try:
        fit(root, tiny, data=data)
    except Killed:
        assert data._journal is None
    else:
        raise AssertionError("it should have been killed")


DIES = """
import os, sys
from pathlib import Path
from tests.tiny import vowels
from tests.wheel.harness import Scores, fit

def dies(prompt, texts, asked=[]):
    asked.append(prompt)
    if len(asked) == 12:
        os._exit(9)
    return vowels(prompt, texts)

fit(Path(sys.argv[1]), sys.argv[2], annotator=Scores(dies), chunk_prompts=2)
"""


def test_a_dead_process_leaves_its_labels(tiny: str, root: Path) -> None:
    dead = subprocess.run([sys.executable, "-c", DIES, str(root), tiny], cwd=ROOT, timeout=120, check=False, capture_output=True)
    assert dead.returncode == 9, dead.stderr.decode()
    journal = LabelJournal(root / "journal", 0)
    journal.close()
    assert journal.labels_used == 10 * 4, "all but the chunk in flight"
    annotator = Scores()
    fit(root, tiny, annotator=annotator, chunk_prompts=2)
    assert len(annotator.asked) == 6
