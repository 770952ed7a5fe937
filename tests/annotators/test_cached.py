"""A label is asked for once, whatever run asks."""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from time import process_time
from typing import Any

import pytest
import torch

from benchmarks.cache import folders, measure
from lit_align.annotators import Cached, PairwiseJudge, ScoringJudge
from lit_align.metering import Meter, Unmetered, metered, repeated
from lit_align.types import Annotation, Annotator, Ask, Prompt, Rollouts, UserError
from tests.annotators.worlds import Fake, rollouts

TEXTS = [["a", "bb", "ccc"], ["dd", "d", ""]]


class Judge(Annotator):
    """Scores, preferences and mass that no float32 has by chance; it remembers the prompts that it was asked about."""

    def __init__(self, identity: str = "judge", scale: float = 1 / 3) -> None:
        self.identity, self.scale = identity, scale
        self.asked: list[int] = []

    def annotate(self, rollouts: Rollouts) -> Annotation:
        self.asked += [prompt.id for prompt in rollouts.prompts]
        scores = torch.tensor([[self.scale * len(text) + self.version for text in texts] for texts in rollouts.texts])
        preferences = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid()
        preferences.diagonal(dim1=-2, dim2=-1).fill_(math.nan)
        valid = torch.ones_like(scores, dtype=torch.bool)
        return Annotation(scores=scores, valid=valid, preferences=preferences, mass=scores.sin().abs(), annotator_version=self.version)


class Other(Judge):
    """Another class with the same identity."""


@pytest.fixture
def file(tmp_path: Path) -> str:
    return str(tmp_path / "labels.sqlite")


def same(one: Annotation, other: Annotation) -> bool:
    """To the bit, NaN included."""
    for (name, a, _), (other_name, b, _) in zip(one.tensors(), other.tensors(), strict=True):
        if (
            name != other_name
            or a.dtype != b.dtype
            or not torch.equal(a.isnan(), b.isnan())
            or not torch.equal(a.nan_to_num(), b.nan_to_num())
        ):
            return False
    return True


def test_another_run_asks_nothing_and_gets_the_same_bits(file: str) -> None:
    asked, plain = rollouts(TEXTS), Judge().annotate(rollouts(TEXTS))
    first, again = Cached(Judge(), file), Cached(Judge(), file)
    assert same(first.annotate(asked), plain)
    first.close()
    assert same(again.annotate(asked), plain)
    assert again.annotator.asked == []
    assert (first.hits, first.misses, again.hits, again.misses) == (0, 6, 6, 0)


def test_only_what_is_missing_is_asked_and_rows_stay_in_order(file: str) -> None:
    Cached(Judge(), file).annotate(rollouts(TEXTS[1:]))
    cached, more = Cached(Judge(), file), [["x", "yy", "zzzz"], *TEXTS[1:], ["q", "q", "q"], ["x", "yy", "zzzz"]]
    assert same(cached.annotate(rollouts(more)), Judge().annotate(rollouts(more)))
    assert cached.annotator.asked == [0, 2], "equal rows once"
    assert (cached.hits, cached.misses) == (6, 6)


BASE: dict[str, Any] = {"content": "why?", "reference": "because", "meta": {"items": ["short", "kind"]}, "dataset": "posts"}


@pytest.mark.parametrize(
    "change",
    [
        {"content": "why ?"},
        {"content": ({"role": "user", "content": "why?"},)},
        {"reference": "so"},
        {"reference": None},
        {"meta": {"items": ["kind", "short"]}},
        {"dataset": "chats"},
    ],
)
def test_another_prompt_is_another_label(change: Mapping[str, Any], file: str) -> None:
    asked, cached = rollouts(TEXTS[:1]), Cached(Judge(), file)
    cached.annotate(replace(asked, prompts=(Prompt(0, **BASE),)))
    cached.annotate(replace(asked, prompts=(Prompt(7, **BASE),)))  # the row's number is no content
    assert cached.annotator.asked == [0]
    cached.annotate(replace(asked, prompts=(Prompt(9, **{**BASE, **change}),)))
    assert cached.annotator.asked == [0, 9]


@pytest.mark.parametrize("texts", [["a", "bb", "cc"], ["bb", "a", "ccc"], ["a", "bb"], ["a", "bb", "ccc", ""]])
def test_other_responses_or_another_order_are_other_labels(texts: list[str], file: str) -> None:
    cached = Cached(Judge(), file)
    cached.annotate(rollouts(TEXTS[:1]))
    assert same(cached.annotate(rollouts([texts])), Judge().annotate(rollouts([texts])))
    assert cached.annotator.asked == [0, 0]


@pytest.mark.parametrize("other", [Judge("stricter judge"), Other()])
def test_another_annotator_is_not_answered_for(other: Judge, file: str) -> None:
    Cached(Judge(), file).annotate(rollouts(TEXTS))
    Cached(other, file).annotate(rollouts(TEXTS))
    assert other.asked == [0, 1]


def test_an_annotator_that_has_learnt_is_asked_again(file: str) -> None:
    cached = Cached(Judge(), file)
    before = cached.annotate(rollouts(TEXTS))
    cached.annotator.version = 1
    assert cached.version == 1
    after = cached.annotate(rollouts(TEXTS))
    torch.testing.assert_close(after.scores, before.scores + 1)
    assert (before.annotator_version, after.annotator_version) == (0, 1)


def test_another_template_misses(file: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("preamble: 'Judge: '\nsample: '{prompt}|{response}'\nending: '='\n", encoding="utf-8")
    backend, asked = Fake(lambda text: [-3.0] * 10), rollouts(TEXTS)
    for template in ("tldr", "helpfulness", str(tmp_path / "mine.yaml"), "tldr"):
        Cached(ScoringJudge(backend, template, min_mass=0), file).annotate(asked)
    (tmp_path / "mine.yaml").write_text("preamble: 'judge: '\nsample: '{prompt}|{response}'\nending: '='\n", encoding="utf-8")
    Cached(ScoringJudge(backend, str(tmp_path / "mine.yaml"), min_mass=0), file).annotate(asked)
    assert len(backend.questions) == 4 * 6, "the fourth found those of the first; the same file with another text did not"


def test_verdicts_that_were_not_asked_for_stay_so(file: str) -> None:
    judge = PairwiseJudge(Fake(lambda text: [-0.7, -0.7]), "helpfulness", opponents=2)
    asked, cached = rollouts([list("abcde")]), Cached(judge, file)
    assert same(cached.annotate(asked), judge.annotate(asked))
    assert same(cached.annotate(asked), judge.annotate(asked))
    assert cached.hits == 5


class Moody(Judge):
    """It can't score empty responses, and says infinity of "oo"."""

    def annotate(self, rollouts: Rollouts) -> Annotation:
        said = super().annotate(rollouts)
        empty = torch.tensor([[not text for text in texts] for texts in rollouts.texts])
        endless = torch.tensor([[text == "oo" for text in texts] for texts in rollouts.texts])
        return replace(said, scores=said.scores.where(~empty, 0.0).where(~endless, math.inf), valid=~empty)


def test_a_failure_is_not_remembered(file: str) -> None:
    cached = Cached(Moody(), file)
    texts = [["a", "bb", "ccc"], ["dd", "d", ""], ["o", "oo", "ooo"]]
    first = cached.annotate(rollouts(texts))
    assert first.valid.tolist() == [[True] * 3, [True, True, False], [True] * 3]
    again = cached.annotate(rollouts(texts))
    assert same(again, first)
    assert cached.annotator.asked == [0, 1, 2, 1, 2]


def test_a_hit_costs_nothing_and_is_told(file: str) -> None:
    class Counts(Meter):
        recall, sent, answered, failed = Unmetered.recall, Unmetered.sent, Unmetered.answered, Unmetered.failed

        def __init__(self) -> None:
            self.told: list[int] = []

        def reused(self, labels: int) -> None:
            self.told.append(labels)

    cached = Cached(Judge(), file)
    with metered(counts := Counts()):
        cached.annotate(rollouts(TEXTS))
        cached.annotate(rollouts([*TEXTS, ["new", "", ""]]))
    assert counts.told == [0, 6]
    assert cached.annotator.asked == [0, 1, 2]


def test_it_wakes_and_closes_its_annotator(file: str) -> None:
    backend = Fake(lambda _: [-3.0] * 10)
    cached = Cached(ScoringJudge(backend, "tldr", min_mass=0), file)
    cached.setup(torch.device("cpu"))
    cached.annotate(rollouts(TEXTS))
    cached.close()
    cached.close()
    assert backend.devices == [torch.device("cpu"), None, None]
    assert cached.annotate(rollouts(TEXTS)).valid.all(), "and it can be opened again"
    assert cached.hits == 6


def test_whose_label_it_is_must_be_known(file: str) -> None:
    with pytest.raises(UserError, match=r"Judge has no identity.*Set `self\.identity`"):
        Cached(Judge(identity=""), file)


def test_an_answer_of_the_wrong_shape_is_refused(file: str) -> None:
    class Half(Judge):
        def annotate(self, rollouts: Rollouts) -> Annotation:
            return super().annotate(rollouts.rows([0]))

    with pytest.raises(UserError, match=r"should return scores of shape \[2, 3\].*but returned \[1, 3\]"):
        Cached(Half(), file).annotate(rollouts(TEXTS))


def test_every_field_of_an_annotation_is_kept() -> None:
    """One that is no tensor would get lost: give it a place in the rows, and bring their format up by one."""
    assert {field.name for field in fields(Annotation) if "axes" not in field.metadata} == {"annotator_version"}


def test_variables_in_the_path_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELS", str(tmp_path / "shared"))
    Cached(Judge(), "$LABELS/judge.sqlite").annotate(rollouts(TEXTS))
    assert (tmp_path / "shared" / "judge.sqlite").is_file()


def test_it_is_fast_enough_or_half_as_fast_as_the_database() -> None:
    """In seconds of this process, so that others on the machine don't count."""
    with folders(3) as rounds:
        rates = [measure(folder, 8, process_time) for folder in rounds]
    best = {name: max(getattr(rate, name) for rate in rates) for name in ("hits", "committed", "plain_hits", "plain_committed")}
    assert best["hits"] >= min(20_000, best["plain_hits"] / 2)
    assert best["committed"] >= min(5_000, best["plain_committed"] / 2)


def test_named_parts_come_back_with_the_rest(file: str) -> None:
    class Rubric(Judge):
        def annotate(self, rollouts: Rollouts) -> Annotation:
            said = super().annotate(rollouts)
            return replace(said, parts={"kind": said.scores / 3, "true": said.scores / 7})

    plain = Rubric().annotate(rollouts(TEXTS))
    Cached(Rubric(), file).annotate(rollouts(TEXTS))
    again = Cached(Rubric(), file).annotate(rollouts(TEXTS))
    assert [*again.parts] == ["kind", "true"]
    assert same(again, plain)


def test_what_is_repeated_on_purpose_is_asked_anew(file: str) -> None:
    cached = Cached(Judge(), file)
    for number in (0, 1, 1):
        with repeated(number):
            cached.annotate(rollouts(TEXTS))
    assert cached.misses == 12


def test_an_annotator_that_learns_still_does(file: str) -> None:
    class Learner(Judge):
        def learn(self, rollouts: Rollouts, ask: Ask) -> Mapping[str, float]:
            self.version += 1
            return {"learnt": 1.0}

        def state_dict(self) -> dict[str, Any]:
            return {"version": self.version}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.version = state["version"]

    cached, other = Cached(Learner(), file), Cached(Learner(), file)
    assert cached.learn(rollouts(TEXTS), lambda annotator, asked: annotator.annotate(asked)) == {"learnt": 1.0}
    other.load_state_dict(cached.state_dict())
    assert (cached.version, other.version) == (1, 1)
