"""The journal's promise: labels are on disk before they are used, none is asked for twice, none changes."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lit_align.data.journal import LabelJournal
from lit_align.types import Annotation, Annotator, Prompt, Rollouts, Stream, UserError

TRAIN = Stream(seed=0, name="train", rollout=4)
TEXTS = (("a", "b"), ("c", "d"), ("e", "f"))


def rollouts(texts=TEXTS, ids=(2**63 - 1, 7, 8), contents=None) -> Rollouts:
    """B prompts, K = 2 responses, T = 2 tokens."""
    mask = torch.ones(len(ids), 2, 2, dtype=torch.bool)
    return Rollouts(
        prompts=tuple(Prompt(i, c) for i, c in zip(ids, contents or [f"prompt {i}" for i in ids], strict=True)),
        occurrences=torch.zeros(len(ids), dtype=torch.long),
        prompt_tokens=torch.ones(len(ids), 3, dtype=torch.long),
        prompt_mask=torch.ones(len(ids), 3, dtype=torch.bool),
        response_tokens=torch.ones(len(ids), 2, 2, dtype=torch.long),
        response_mask=mask,
        loss_mask=mask,
        sampling_logps=torch.zeros(len(ids), 2, 2),
        finished=mask.all(-1),
        texts=texts,
        policy_version=0,
    )


class Oracle(Annotator):
    """Random labels, so that asking twice can't go unnoticed; it remembers what it was asked."""

    def __init__(self, preferences: bool = False, invalid: tuple[str, ...] = ()) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.preferences, self.invalid = preferences, invalid
        self.asked: list[tuple[tuple[str, ...], ...]] = []

    def annotate(self, rollouts: Rollouts) -> Annotation:
        self.asked.append(rollouts.texts)
        shape = rollouts.response_tokens.shape[:2]
        valid = torch.tensor([[text not in self.invalid for text in row] for row in rollouts.texts]).reshape(shape)
        scores = torch.randn(shape, generator=self.generator)
        preferences = torch.rand(*shape, shape[1], generator=self.generator) if self.preferences else None
        if preferences is not None:
            preferences = preferences.where(~torch.eye(shape[1], dtype=torch.bool), math.nan)
        return Annotation(scores=scores.where(valid, math.nan), valid=valid, preferences=preferences, annotator_version=self.version)


class Never(Annotator):
    def annotate(self, rollouts: Rollouts) -> Annotation:
        raise AssertionError(f"asked for {rollouts.texts}")


class Fixed(Annotator):
    def __init__(self, scores, valid=None, preferences=None) -> None:
        self.scores = torch.as_tensor(scores)
        self.valid = torch.ones(self.scores.shape, dtype=torch.bool) if valid is None else torch.as_tensor(valid)
        self.preferences = preferences

    def annotate(self, rollouts: Rollouts) -> Annotation:
        return Annotation(scores=self.scores, valid=self.valid, preferences=self.preferences)


@pytest.fixture
def opened(tmp_path):
    """Opens journals of one folder, and closes them."""
    journals = []

    def open_journal(rank=0, name="run"):
        journals.append(LabelJournal(tmp_path / name, rank))
        return journals[-1]

    yield open_journal
    for journal in journals:
        journal.close()


def bits(tensor: Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).flatten().tolist()


def assert_bit_equal(first: Annotation, second: Annotation) -> None:
    assert bits(first.scores) == bits(second.scores)
    assert first.valid.tolist() == second.valid.tolist()
    assert (first.preferences is None) == (second.preferences is None)
    if first.preferences is not None and second.preferences is not None:
        assert bits(first.preferences) == bits(second.preferences)


def lines(folder, rank=0):
    return [json.loads(line) for line in (folder / "run" / f"labels-{rank}.jsonl").read_text().splitlines()]


def test_first_answer_is_what_the_annotator_said(opened):
    annotation = opened().annotate(Oracle(), rollouts(), TRAIN)
    expected = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    assert annotation.scores.dtype == torch.float32
    assert bits(annotation.scores) == bits(expected)
    assert annotation.valid.all()
    assert annotation.preferences is None


def test_replay_is_equal_to_the_bit(opened):
    # float32 that a decimal of few digits would lose: its neighbours of 0.1, smallest and largest numbers, minus zero
    scores = torch.tensor([[0.1, -0.0], [1e-45, 3.4028235e38], [1 / 3, -1.1754944e-38]])
    first = opened().annotate(Fixed(scores), rollouts(), TRAIN)
    assert bits(first.scores) == bits(scores)
    assert_bit_equal(opened().annotate(Never(), rollouts(), TRAIN), first)


def test_replay_within_the_same_process(opened):
    journal = opened()
    first = journal.annotate(Oracle(), rollouts(), TRAIN)
    assert_bit_equal(journal.annotate(Never(), rollouts(), TRAIN), first)


def test_scores_of_another_precision_become_float32(opened):
    double = torch.tensor([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], dtype=torch.float64)
    first = opened().annotate(Fixed(double), rollouts(), TRAIN)
    assert bits(first.scores) == bits(double.float())
    assert_bit_equal(opened().annotate(Never(), rollouts(), TRAIN), first)


def test_only_unknown_rows_are_asked_in_one_call_and_order_is_kept(opened):
    journal, oracle = opened(), Oracle()
    middle = journal.annotate(oracle, rollouts().rows([1]), TRAIN)
    merged = journal.annotate(oracle, rollouts(), TRAIN)
    assert oracle.asked == [(TEXTS[1],), (TEXTS[0], TEXTS[2])]
    assert bits(merged.scores[1]) == bits(middle.scores[0])
    fresh = torch.Generator().manual_seed(0)
    torch.randn(1, 2, generator=fresh)
    assert bits(merged.scores[[0, 2]]) == bits(torch.randn(2, 2, generator=fresh))
    turned = opened().annotate(Never(), rollouts().rows([2, 0, 1]), TRAIN)
    assert bits(turned.scores) == bits(merged.scores[[2, 0, 1]])


def test_labels_are_on_disk_before_they_are_used(opened, tmp_path):
    """A kill right after ``annotate``: the file is not closed, another process reads it."""
    first = opened().annotate(Oracle(), rollouts(), TRAIN)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "labels-0.jsonl").write_bytes((tmp_path / "run" / "labels-0.jsonl").read_bytes())
    assert_bit_equal(opened(name="copy").annotate(Never(), rollouts(), TRAIN), first)


def test_each_chunk_is_synced_once_after_it_was_written(opened, tmp_path, monkeypatch):
    journal, sizes = opened(), []
    monkeypatch.setattr("os.fsync", lambda descriptor: sizes.append(len(lines(tmp_path))))
    journal.annotate(Oracle(), rollouts().rows([0]), TRAIN)
    journal.annotate(Oracle(), rollouts(), TRAIN)
    journal.annotate(Never(), rollouts(), TRAIN)
    assert sizes == [1, 3]


def test_a_new_file_is_synced_into_its_folder(opened, tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda descriptor: synced.append(os.path.samestat(os.fstat(descriptor), os.stat(tmp_path / "run"))))
    opened()
    assert synced == [True]


def test_a_kill_before_the_answer_asks_the_chunk_again(opened):
    class Killed(Annotator):
        def annotate(self, rollouts: Rollouts) -> Annotation:
            raise KeyboardInterrupt

    journal = opened()
    first = journal.annotate(Oracle(), rollouts().rows([0]), TRAIN)
    with pytest.raises(KeyboardInterrupt):
        journal.annotate(Killed(), rollouts(), TRAIN)
    again, oracle = opened(), Oracle()
    assert again.labels_used == 2
    merged = again.annotate(oracle, rollouts(), TRAIN)
    assert bits(merged.scores[0]) == bits(first.scores[0])
    assert oracle.asked == [TEXTS[1:]]


@pytest.mark.parametrize("kept", [0, 1, 30, -1])  # bytes of the last line that reached the disk
def test_a_torn_last_line_is_asked_again_and_leaves_a_valid_file(kept, opened, tmp_path):
    journal = opened()
    first = journal.annotate(Oracle(), rollouts(), TRAIN)
    journal.close()
    path = tmp_path / "run" / "labels-0.jsonl"
    whole = path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    path.write_bytes(whole[:start] + whole[start:][:kept])
    resumed, oracle = opened(), Oracle()
    assert resumed.labels_used == 4
    merged = resumed.annotate(oracle, rollouts(), TRAIN)
    assert oracle.asked == [(TEXTS[2],)]
    assert bits(merged.scores[:2]) == bits(first.scores[:2])
    assert len(lines(tmp_path)) == 3
    assert_bit_equal(opened().annotate(Never(), rollouts(), TRAIN), merged)


def test_a_torn_line_of_another_rank_is_ignored_and_left_alone(opened, tmp_path):
    opened(rank=1).annotate(Oracle(), rollouts(), TRAIN)
    path = tmp_path / "run" / "labels-1.jsonl"
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    oracle = Oracle()
    opened(rank=0).annotate(oracle, rollouts(), TRAIN)
    assert oracle.asked == [(TEXTS[2],)]
    assert path.read_bytes() == torn


def test_a_spoilt_line_is_named(opened, tmp_path):
    opened().annotate(Oracle(), rollouts(), TRAIN)
    path = tmp_path / "run" / "labels-0.jsonl"
    good = path.read_text().splitlines()
    for spoilt in ("not json", "3", '{"stream": "train"}'):
        path.write_text("\n".join([good[0], spoilt, good[2], ""]))
        with pytest.raises(UserError, match=r"labels-0\.jsonl, line 2: expected a line of a label journal.*delete the line"):
            opened()


@pytest.mark.parametrize(
    "changed",
    [
        rollouts(texts=(("a", "b"), ("c", "changed"), ("e", "f"))),
        rollouts(texts=(("a", "b"), ("d", "c"), ("e", "f"))),
        rollouts(contents=["prompt 9223372036854775807", "changed", "prompt 8"]),
        rollouts(contents=["prompt 9223372036854775807", ({"role": "user", "content": "prompt 7"},), "prompt 8"]),
        replace(rollouts(), prompts=(rollouts().prompts[0], Prompt(7, "prompt 7", reference="changed"), rollouts().prompts[2])),
        replace(rollouts(), prompts=(rollouts().prompts[0], Prompt(7, "prompt 7", meta={"a": 1}), rollouts().prompts[2])),
        rollouts(ids=(2**63 - 1, 6, 8), contents=["prompt 9223372036854775807", "prompt 7", "prompt 8"]),
        replace(rollouts(), occurrences=torch.tensor([0, 1, 0])),
    ],
    ids=["text", "order of texts", "prompt", "text to messages", "reference", "meta", "id", "occurrence"],
)
def test_what_changed_is_asked_again_and_the_new_label_wins(changed, opened):
    journal, oracle = opened(), Oracle()
    first = journal.annotate(oracle, rollouts(), TRAIN)
    second = journal.annotate(oracle, changed, TRAIN)
    assert oracle.asked[1:] == [(changed.texts[1],)]
    assert bits(second.scores[1]) != bits(first.scores[1])
    assert bits(second.scores[[0, 2]]) == bits(first.scores[[0, 2]])
    assert journal.labels_used == 8
    resumed = opened()
    assert_bit_equal(resumed.annotate(Never(), changed, TRAIN), second)
    assert resumed.labels_used == 8


def test_messages_are_compared_by_what_they_say(opened):
    journal = opened()
    first = journal.annotate(Oracle(), rollouts(contents=[({"role": "user", "content": "x"},), "b", "c"]), TRAIN)
    same = rollouts(contents=[({"content": "x", "role": "user"},), "b", "c"])
    assert_bit_equal(journal.annotate(Never(), same, TRAIN), first)


@pytest.mark.parametrize("other", [replace(TRAIN, name="eval"), replace(TRAIN, rollout=5)])
def test_another_stream_or_rollout_is_another_label(other, opened):
    journal, oracle = opened(), Oracle()
    first = journal.annotate(oracle, rollouts(), TRAIN)
    assert bits(journal.annotate(oracle, rollouts(), other).scores) != bits(first.scores)
    resumed = opened()
    assert_bit_equal(resumed.annotate(Never(), rollouts(), TRAIN), first)


def test_a_new_version_of_the_annotator_is_asked_again(opened):
    journal, oracle = opened(), Oracle()
    assert journal.annotate(oracle, rollouts(), TRAIN).annotator_version == 0
    oracle.version = 1
    assert journal.annotate(oracle, rollouts(), TRAIN).annotator_version == 1
    assert len(oracle.asked) == 2


def test_an_annotator_that_learns_while_it_labels_answers_for_the_version_that_was_asked(opened):
    class Learner(Oracle):
        def annotate(self, rollouts: Rollouts) -> Annotation:
            annotation = super().annotate(rollouts)
            self.version += 1
            return annotation

    first = opened().annotate(Learner(), rollouts(), TRAIN)
    assert first.annotator_version == 0
    assert_bit_equal(opened().annotate(Never(), rollouts(), TRAIN), first)


def test_the_number_of_ranks_may_change(opened):
    parts = [opened(rank).annotate(Oracle(), rollouts().rows([row]), TRAIN) for rank, row in ((0, 1), (10, 0), (2, 2))]
    one = opened(rank=0)
    assert one.labels_used == 6
    assert one.labels_written == 0
    merged = one.annotate(Never(), rollouts(), TRAIN)
    assert bits(merged.scores) == bits(torch.cat([parts[1].scores, parts[0].scores, parts[2].scores]))


def test_each_rank_writes_its_own_file_only(opened, tmp_path):
    zero, one = opened(0), opened(1)
    one.annotate(Oracle(), rollouts().rows([0]), TRAIN)
    assert len(lines(tmp_path, 1)) == 1
    assert lines(tmp_path, 0) == []
    assert (zero.labels_used, one.labels_used) == (0, 2)


def test_preferences_come_back_with_what_was_not_asked(opened):
    first = opened().annotate(Oracle(preferences=True), rollouts(), TRAIN)
    assert first.preferences is not None
    assert first.preferences.isnan().tolist() == [[[True, False], [False, True]]] * 3
    replayed = opened().annotate(Never(), rollouts(), TRAIN)
    assert_bit_equal(replayed, first)
    assert replayed.preferences is not None
    fresh = torch.Generator().manual_seed(0)
    torch.randn(3, 2, generator=fresh)
    assert replayed.preferences[1, 0, 1] == torch.rand(3, 2, 2, generator=fresh)[1, 0, 1]


def test_preferences_of_some_rows_leave_the_others_not_asked(opened):
    journal = opened()
    journal.annotate(Oracle(), rollouts().rows([0]), TRAIN)
    merged = journal.annotate(Oracle(preferences=True), rollouts(), TRAIN).preferences
    assert merged is not None
    assert merged[0].isnan().all()
    assert not merged[1:, 0, 1].isnan().any()


def test_invalid_responses_stay_invalid_without_being_asked_again(opened, tmp_path):
    first = opened().annotate(Oracle(invalid=("b", "c", "d")), rollouts(), TRAIN)
    assert first.valid.tolist() == [[True, False], [False, False], [True, True]]
    assert first.scores[~first.valid].tolist() == [0.0, 0.0, 0.0]
    assert lines(tmp_path)[1]["scores"] == [None, None]
    replayed = opened()
    assert_bit_equal(replayed.annotate(Never(), rollouts(), TRAIN), first)
    assert replayed.labels_used == 6  # asked for is paid for


def test_a_valid_zero_is_not_an_invalid_one(opened):
    opened().annotate(Fixed([[0.0, 1.0]] * 3, valid=[[True, False]] * 3), rollouts(), TRAIN)
    replayed = opened().annotate(Never(), rollouts(), TRAIN)
    assert replayed.valid.tolist() == [[True, False]] * 3
    assert replayed.scores.tolist() == [[0.0, 0.0]] * 3


def test_counts(opened, tmp_path):
    journal = opened()
    assert (journal.labels_used, journal.labels_written) == (0, 0)
    journal.annotate(Oracle(), rollouts().rows([0]), TRAIN)
    assert (journal.labels_used, journal.labels_written) == (2, 2)
    journal.annotate(Oracle(), rollouts(), TRAIN)
    assert (journal.labels_used, journal.labels_written) == (6, 6)
    resumed = opened()
    resumed.annotate(Oracle(), rollouts(), replace(TRAIN, rollout=5))
    assert (resumed.labels_used, resumed.labels_written) == (12, 6)
    assert sum(line["labels"] for line in lines(tmp_path)) == 12


def test_equal_requests_of_one_chunk_have_equal_labels(opened):
    twice = rollouts().rows([0, 0])
    first = opened().annotate(Oracle(), twice, TRAIN)
    assert_bit_equal(opened().annotate(Never(), twice, TRAIN), first)


def test_one_key_with_two_contents_in_one_chunk(opened):
    """Two sources of one name: neither gets the other's label, and a resume asks for none."""
    clash = rollouts(ids=(7, 7, 8), contents=["x", "y", "z"])
    first = opened().annotate(Oracle(), clash, TRAIN)
    assert bits(first.scores) == bits(torch.randn(3, 2, generator=torch.Generator().manual_seed(0)))
    assert_bit_equal(opened().annotate(Never(), clash, TRAIN), first)


def test_no_prompt_asks_nothing(opened):
    annotation = opened().annotate(Never(), rollouts().rows([]), TRAIN)
    assert annotation.scores.shape == annotation.valid.shape == (0, 2)


def test_a_closed_journal_buys_nothing(opened):
    journal = opened()
    journal.close()
    with pytest.raises(ValueError, match="closed"):
        journal.annotate(Never(), rollouts(), TRAIN)


@pytest.mark.parametrize(
    ("annotator", "message"),
    [
        (Fixed([[1.0, 2.0]] * 2), r"Fixed.annotate should return scores of shape \[3, 2\] for 3 prompts.*returned \[2, 2\].*valid=False"),
        (Fixed([[1.0, 2.0, 3.0]] * 3), r"scores of shape \[3, 2\].*returned \[3, 3\]"),
        (Fixed([[1.0, 2.0], [math.nan, 0.0], [1.0, math.inf]]), r"finite.*prompt 1, response 0 .*is nan\. Set valid=False"),
        (Fixed([[1.0, 2.0], [0.0, 0.0], [1.0, math.inf]]), r"prompt 2, response 1 .*is inf"),
        (Fixed(torch.tensor([[1e300, 2.0]] * 3, dtype=torch.float64)), r"prompt 0, response 0 .*is inf"),
        (Fixed([[1.0, 2.0]] * 3, valid=[[1, 1]] * 3), r"valid as bool, but returned torch.int64"),
        (Fixed([[1.0, 2.0]] * 3, preferences=torch.full((3, 2, 2), 1.5)), r"probabilities.*1.5 to 1.5.*\[0, 1\]"),
        (Fixed([[1.0, 2.0]] * 3, preferences=torch.full((3, 2, 2), -0.5)), r"probabilities.*-0.5"),
    ],
)
def test_a_wrong_answer_is_refused_and_not_kept(annotator, message, opened):
    journal = opened()
    with pytest.raises(UserError, match=message):
        journal.annotate(annotator, rollouts(), TRAIN)
    assert opened().labels_used == journal.labels_used == 0
    journal.annotate(Oracle(), rollouts(), TRAIN)
    assert opened().labels_used == 6


def test_another_annotator_is_asked_for_its_own_labels(opened):
    first, other = Oracle(), Oracle()
    first.identity, other.identity = "my.kindness", "my.honesty"
    opened().annotate(first, rollouts(), TRAIN)
    opened().annotate(other, rollouts(), TRAIN)
    assert other.asked == [TEXTS]
    never = Never()
    never.identity = "my.kindness"
    opened().annotate(never, rollouts(), TRAIN)


class Massive(Annotator):
    """A judge, as far as a journal can tell."""

    identity = "judge"
    mass = torch.tensor([[0.9, 1 / 3], [0.0, math.nan], [1.0, 0.5]])

    def annotate(self, rollouts: Rollouts) -> Annotation:
        valid = torch.ones(self.mass.shape, dtype=torch.bool)
        return Annotation(scores=torch.zeros_like(self.mass), valid=valid, mass=self.mass)


def test_the_mass_of_a_judge_is_kept(tmp_path):
    journal = LabelJournal(tmp_path, 0)
    first = journal.annotate(Massive(), rollouts(), TRAIN).mass
    journal.close()
    again = LabelJournal(tmp_path, 0)
    replayed = again.annotate(Massive(), rollouts(), TRAIN).mass
    assert again.labels_written == 0
    again.close()
    for mass in (first, replayed):
        torch.testing.assert_close(mass, Massive.mass, atol=0, rtol=0, equal_nan=True)


PARTS = {"true": torch.tensor([[0.5, math.nan], [0.1, 0.2], [0.3, 1 / 3]]), "short": torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])}


class Parted(Annotator):
    """Two parts, of which one is unknown of a response."""

    identity = "Parted(template:0123456789ab)"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        return Annotation(scores=PARTS["short"], valid=torch.ones(3, 2, dtype=torch.bool), parts=PARTS)


def test_the_parts_of_a_score_are_kept(opened, tmp_path):
    first = opened().annotate(Parted(), rollouts(), TRAIN)
    resumed = opened()
    replayed = resumed.annotate(Parted(), rollouts(), TRAIN)
    assert resumed.labels_written == 0
    for annotation in (first, replayed):
        assert list(annotation.parts) == ["true", "short"]
        for name, part in annotation.parts.items():
            torch.testing.assert_close(part, PARTS[name], atol=0, rtol=0, equal_nan=True)
    assert lines(tmp_path)[0]["parts"] == {"true": [0.5, None], "short": [1.0, 2.0]}
    assert opened(name="other").annotate(Oracle(), rollouts(), TRAIN).parts == {}


def test_a_part_of_the_wrong_shape_is_refused(opened):
    class Narrow(Annotator):
        def annotate(self, rollouts):
            wrong = {"true": torch.zeros(3, 2), "short": torch.zeros(2, 2)}
            return Annotation(scores=torch.zeros(3, 2), valid=torch.ones(3, 2, dtype=torch.bool), parts=wrong)

    with pytest.raises(ValueError, match=r"parts\.short has B = 2"):
        opened().annotate(Narrow(), rollouts(), TRAIN)


def test_every_line_says_who_labelled(opened, tmp_path):
    opened().annotate(Parted(), rollouts(), TRAIN)
    assert [line["annotator"] for line in lines(tmp_path)] == ["Parted(template:0123456789ab)"] * 3


def test_what_json_cannot_hold_is_no_other_prompt_in_another_process(opened):
    class Image:
        """Prints its address."""

    def asked():
        return replace(rollouts(), prompts=tuple(replace(p, meta={"image": Image(), "at": 1}) for p in rollouts().prompts))

    first = opened().annotate(Oracle(), asked(), TRAIN)
    assert_bit_equal(opened().annotate(Never(), asked(), TRAIN), first)


def test_a_line_without_mass_is_still_a_line(tmp_path):
    path = tmp_path / "labels-0.jsonl"
    journal = LabelJournal(tmp_path, 0)
    first = journal.annotate(Oracle(), rollouts(), TRAIN)
    journal.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert all(line.pop("mass") is line.pop("parts") is None for line in lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    again = LabelJournal(tmp_path, 0)
    replayed = again.annotate(Never(), rollouts(), TRAIN)
    again.close()
    assert torch.equal(replayed.scores, first.scores)
    assert replayed.mass is None


def test_labels_of_a_rollout_that_was_begun(opened):
    """Each prompt's once, those of all ranks, and none that came since."""
    first, second = opened(0), opened(1)
    first.annotate(Oracle(), rollouts(), TRAIN)
    first.annotate(Oracle(), replace(rollouts(), texts=(("another", "answer"),) * 3), TRAIN)
    later = Stream(TRAIN.seed, TRAIN.name, TRAIN.rollout + 1)
    second.annotate(Oracle(), rollouts(), later)
    assert first.labels_read_of(TRAIN) == second.labels_read_of(later) == 0
    again = opened(0)
    again.annotate(Oracle(), rollouts(), Stream(TRAIN.seed, "eval", TRAIN.rollout))
    assert again.labels_read_of(TRAIN) == again.labels_read_of(later) == 6
    assert again.labels_read_of(Stream(TRAIN.seed, "eval", TRAIN.rollout)) == 0
    assert again.labels_used == 18 + 6
