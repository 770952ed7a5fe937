"""Labels are the same, in the same order, whether the next chunk is sampled meanwhile or not; nothing is asked twice at once."""

import threading
from contextvars import ContextVar
from pathlib import Path
from typing import final

import pytest
import torch

from lit_align.data.labelling import labelled
from lit_align.types import Annotation, Annotator, Rollouts
from tests.annotators.worlds import rollouts
from tests.tiny import write_tiny
from tests.wheel.harness import Scores, differing, fit

CHUNKS = [[["a", "b"]], [["c", "d"], ["e", "f"]], [["g", "h"]]]
PATIENT = 20.0  # seconds; a test that works never waits for it
SETTING: ContextVar[str] = ContextVar("setting", default="not seen")


class Recorded:
    """What happened, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.told: list[tuple[int, int]] = []

    def sampled(self):
        for texts in CHUNKS:
            self.events.append(f"sampled {texts[0][0]}")
            yield rollouts(texts)

    def label(self, chunk: Rollouts) -> Annotation:
        self.events.append(f"asked {chunk.texts[0][0]}")
        scores = torch.tensor([[float(ord(text)) for text in row] for row in chunk.texts])
        return Annotation(scores=scores, valid=torch.ones_like(scores, dtype=torch.bool))

    def tell(self, sampled: int, annotated: int) -> None:
        self.told.append((sampled, annotated))


def run(recorded: Recorded, overlap: bool, label=None, sampled=None):
    chunks = labelled(sampled or recorded.sampled(), label or recorded.label, recorded.tell, done=10, overlap=overlap)
    return [(chunk.texts[0][0], annotation.scores.tolist()) for chunk, annotation in chunks]


@pytest.mark.parametrize("overlap", [False, True])
def test_every_chunk_has_its_labels_in_order(overlap):
    found = run(Recorded(), overlap)
    assert found == [("a", [[97.0, 98.0]]), ("c", [[99.0, 100.0], [101.0, 102.0]]), ("g", [[103.0, 104.0]])]


def test_one_after_the_other_without_waiting():
    recorded = Recorded()
    run(recorded, overlap=False)
    assert recorded.events == ["sampled a", "asked a", "sampled c", "asked c", "sampled g", "asked g"]
    assert recorded.told == [(12, 10), (12, 12), (16, 12), (16, 16), (18, 16), (18, 18)]


def test_the_next_chunk_is_sampled_while_one_is_labelled():
    """Every label but the last waits until the next chunk is there: one after the other it would never be."""
    recorded, drawn = Recorded(), [threading.Event() for _ in CHUNKS]

    def sampled():
        for event, chunk in zip(drawn, recorded.sampled(), strict=True):
            event.set()
            yield chunk

    def label(chunk):
        following = [event for event, texts in zip(drawn[1:], CHUNKS, strict=False) if texts[0][0] == chunk.texts[0][0]]
        assert all(event.wait(PATIENT) for event in following)
        return recorded.label(chunk)

    assert run(recorded, True, label, sampled()) == run(Recorded(), False)
    assert recorded.told == [(12, 10), (16, 10), (16, 12), (18, 12), (18, 16), (18, 18)]
    assert [event for event in recorded.events if "asked" in event] == ["asked a", "asked c", "asked g"]


def test_never_more_than_one_at_once_and_never_more_than_one_ahead():
    recorded, busy = Recorded(), threading.Lock()

    def label(chunk):
        assert busy.acquire(blocking=False), "two at once"
        ahead = sum("sampled" in event for event in recorded.events) - sum("asked" in event for event in recorded.events)
        assert ahead <= 2, "the chunk itself and the next"
        answer = recorded.label(chunk)
        busy.release()
        return answer

    assert len(run(recorded, True, label)) == 3


def test_an_error_of_the_annotator_is_raised_here_and_nothing_more_is_asked():
    recorded = Recorded()

    def label(chunk):
        recorded.label(chunk)
        raise OSError("no network")

    with pytest.raises(OSError, match="no network"):
        run(recorded, True, label)
    assert recorded.events == ["sampled a", "asked a", "sampled c"] or recorded.events == ["sampled a", "sampled c", "asked a"]


def test_where_sampling_fails_labels_under_way_are_waited_for():
    recorded, failed, kept = Recorded(), threading.Event(), []

    def sampled():
        yield next(recorded.sampled())
        failed.set()
        raise MemoryError

    def label(chunk):
        assert failed.wait(PATIENT)
        kept.append(recorded.label(chunk))
        return kept[-1]

    with pytest.raises(MemoryError):
        run(recorded, True, label, sampled())
    assert len(kept) == 1


def test_the_other_thread_sees_the_same_context():
    token = SETTING.set("seen")
    seen = []
    run(recorded := Recorded(), True, lambda chunk: (seen.append((SETTING.get(), threading.current_thread())), recorded.label(chunk))[1])
    SETTING.reset(token)
    assert [setting for setting, _ in seen] == ["seen"] * 3
    assert threading.main_thread() not in {thread for _, thread in seen}


@final
class Remote(Annotator):
    """`Scores`, from a network so to say."""

    waits = True

    def __init__(self) -> None:
        self.scores, self.identity = Scores(), Scores.identity

    def annotate(self, rollouts: Rollouts) -> Annotation:
        return self.scores.annotate(rollouts)


def test_a_run_is_the_same_to_the_bit_and_so_is_its_journal(tmp_path: Path):
    model = write_tiny(tmp_path / "model")
    local = fit(tmp_path / "local", model, annotator=Scores(), chunk_prompts=3)
    remote = fit(tmp_path / "remote", model, annotator=Remote(), chunk_prompts=3)
    assert differing(local.state, remote.state) == []
    one, other = ((tmp_path / name / "journal" / "labels-0.jsonl").read_bytes() for name in ("local", "remote"))
    assert one == other
    assert one.count(b"\n") == 16
