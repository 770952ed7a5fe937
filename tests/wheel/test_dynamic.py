"""Dynamic sampling: which prompts are drawn and kept, and that nothing else changes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.data import ListPrompts
from lit_align.data.dynamic import groups_with_spread
from lit_align.functional import has_spread
from lit_align.types import Annotation, EncodedPrompt, Prompt, RolloutCallback, UserError
from tests.tiny import PROMPTS
from tests.wheel.harness import Fit, Killed, Scores, differing, fit
from tests.wheel.test_readings import SOURCES, read
from tests.wheel.test_resume import KillAt, Saves, SavesItsEnd, run

FLAT = {"a", "def", "j", "cc", "hg", "jiji"}


def some_flat(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    """Whatever was said, six of the sixteen prompts have no spread."""
    return [1.0 if prompt.content in FLAT else float(k) for k in range(len(texts))]


def all_flat(prompt: Prompt, texts: Sequence[str]) -> list[float]:
    return [1.0] * len(texts)


def test_spread_is_between_valid_scores() -> None:
    scores = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [2.0, 2.0, 2.0], [1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [-1.0, -2.0, 0.0]])
    valid = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1], [0, 0, 1], [0, 0, 0], [1, 1, 0]]).bool()
    assert has_spread(scores, valid).tolist() == [True, False, False, False, False, True]


def searched(flags: Sequence[int], total: int, budget: int) -> tuple[list[int], int, list[int], list[list[int]]]:
    """A search where prompt number i of the reading has spread or not: the kept ones, how many were drawn on top, what was drawn at a
    time, what was labelled at a time."""
    reading, draws, labels = iter(range(total, len(flags))), [], []

    def said(numbers: Sequence[int]) -> Annotation:
        scores = torch.tensor([[0.0, float(flags[number])] for number in numbers])
        return Annotation(scores=scores, valid=torch.ones_like(scores).bool())

    def draw(count: int) -> list[EncodedPrompt]:
        draws.append(count)
        return [EncodedPrompt(Prompt(id=next(reading), content=""), (0,)) for _ in range(count)]

    def label(prompts: list[EncodedPrompt]) -> Annotation:
        labels.append([prompt.prompt.id for prompt in prompts])
        return said(labels[-1])

    kept, metrics = groups_with_spread(said(range(total)), range(total), total, budget, draw, label, torch.device("cpu"))
    numbers = [*range(total), *(number for part in labels for number in part)]
    assert metrics["rollout/extra_prompts"] == sum(draws)
    return [numbers[i] for i in kept], int(metrics["rollout/without_spread"]), draws, labels


@pytest.mark.parametrize(
    ("flags", "budget", "kept", "without", "draws"),
    [
        ([1, 1, 1, 1], 9, [0, 1, 2, 3], 0, []),
        ([1, 0, 1, 0, 1, 1], 9, [0, 4, 2, 5], 0, [2]),
        ([1, 0, 1, 0, 0, 1, 1], 9, [0, 6, 2, 5], 0, [2, 1]),  # 4 failed for row 1, which tries again
        ([0, 0, 0, 1, 0, 1, 0, 0, 1], 5, [0, 5, 8, 3], 1, [3, 2]),  # the last try was row 2's
        ([0, 0, 0, 1, 1, 1], 2, [4, 5, 2, 3], 1, [2]),  # no budget for row 2
        ([0, 0, 0, 0, 0, 0, 0], 3, [0, 1, 2, 3], 4, [3]),
    ],
)
def test_rows_without_spread_try_the_next_prompts(flags: list[int], budget: int, kept: list[int], without: int, draws: list[int]) -> None:
    found, left, drawn, labelled = searched(flags, 4, budget)
    assert (found, left, drawn) == (kept, without, draws)
    assert [number for part in labelled for number in part] == list(range(4, 4 + sum(draws))), "in the reading's order, each once"


def test_a_rollout_is_of_prompts_with_spread(tiny: str, root: Path) -> None:
    annotator = Scores(some_flat)
    result = fit(root, tiny, annotator=annotator, max_extra_prompts=20, chunk_prompts=3)
    plain = Scores()
    fit(root / "plain", tiny, annotator=plain, trainer={"max_epochs": 6})
    reading = plain.asked
    assert set(annotator.asked[:8]) == set(reading[:8]), "those of the rollout before further ones"
    assert sorted(annotator.asked) == sorted(reading[: len(annotator.asked)]), (
        "no prompt is left out, and the second rollout goes on behind the search"
    )
    flat = {prompt.id for prompt in ListPrompts(PROMPTS) if prompt.content in FLAT}
    start = 0
    for batch, rollouts, metrics in zip(result.recorder.batches, result.recorder.rollouts, result.recorder.metrics, strict=True):
        first, extra = reading[start : start + 8], int(metrics["rollout/extra_prompts"])
        assert extra > 0
        assert not flat & set(batch.prompt_ids.tolist())
        assert all(now == was for now, was in zip(batch.prompt_ids.tolist(), first, strict=True) if was not in flat), "others stay"
        assert [prompt.id for prompt in rollouts.prompts] == batch.prompt_ids.tolist()
        assert batch.optimizer_steps.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
        start += 8 + extra
        assert metrics["labels/used"] == start * 4
        assert metrics["rollout/without_spread"] == 0
        assert metrics["labels/invalid"] == 0
    assert start == len(annotator.asked)


def test_rewards_are_of_everything_that_was_sampled(tiny: str, root: Path) -> None:
    (metrics,) = fit(root, tiny, annotator=Scores(some_flat), max_extra_prompts=20, trainer={"max_epochs": 1}).recorder.metrics
    asked = 8 + metrics["rollout/extra_prompts"]
    assert metrics["reward/mean"] == pytest.approx((8 * 1.5 + (asked - 8) * 1.0) / asked)


def test_a_rollout_is_never_short(tiny: str, root: Path) -> None:
    annotator = Scores(all_flat)
    plain = fit(root / "plain", tiny, annotator=Scores(all_flat), trainer={"max_epochs": 1})
    result = fit(root / "run", tiny, annotator=annotator, max_extra_prompts=11, trainer={"max_epochs": 1})
    assert len(annotator.asked) == 8 + 11
    assert result.recorder.metrics[0]["rollout/extra_prompts"] == 11
    assert result.recorder.metrics[0]["rollout/without_spread"] == 8
    assert read(result) == read(plain), "filled with the prompts that it began with"


def test_where_all_have_spread_nothing_changes(tiny: str, root: Path) -> None:
    plain = fit(root / "plain", tiny, annotator=Scores(lambda _, texts: [*map(float, range(len(texts)))]))
    searching = fit(root / "run", tiny, annotator=Scores(lambda _, texts: [*map(float, range(len(texts)))]), max_extra_prompts=8)
    assert differing(plain.state, searching.state) == []
    assert searching.recorder.metrics[0]["rollout/extra_prompts"] == 0
    assert "rollout/extra_prompts" not in plain.recorder.metrics[0]


def test_a_prompt_that_comes_again_gets_other_responses(tiny: str, root: Path) -> None:
    """Two prompts, one without spread: the other one fills the rollout."""
    asked: list[tuple[int, int]] = []

    class Asked(Scores):  # type: ignore[misc]
        def annotate(self, rollouts: Any) -> Annotation:
            asked.extend(zip([p.id for p in rollouts.prompts], rollouts.occurrences.tolist(), strict=True))
            return super().annotate(rollouts)

    result = fit(root, tiny, annotator=Asked(some_flat), prompts=ListPrompts(["a", "bc"]), max_extra_prompts=40, trainer={"max_epochs": 1})
    assert len(set(asked)) == len(asked) == 8 + result.recorder.metrics[0]["rollout/extra_prompts"]
    (kept,) = read(result)
    assert len({prompt for prompt, _ in kept}) == 1
    assert len({occurrence for _, occurrence in kept}) == 8
    assert len(set(result.recorder.rollouts[0].texts)) > 4


SEARCH: dict[str, Any] = {"max_extra_prompts": 9}
INDEXED = {"indexed": lambda _: ListPrompts(PROMPTS)}
kinds = pytest.mark.parametrize("kind", [*INDEXED, *SOURCES])


def source(kind: str, folder: Path) -> Any:
    return (INDEXED | SOURCES)[kind](folder)


@pytest.fixture(scope="module")
def saved(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Fit, Saves]]:
    found = {}
    for kind in (*INDEXED, *SOURCES):
        folder = tmp_path_factory.mktemp("saved")
        saves = Saves(folder)
        found[kind] = run(folder / "run", tiny, [saves], prompts=source(kind, folder), annotator=Scores(some_flat), **SEARCH), saves
    return found


@kinds
@pytest.mark.parametrize("moment", ["before-0", "after-7"])
def test_resumed_inside_a_rollout(kind: str, moment: str, saved: dict[str, tuple[Fit, Saves]], tiny: str, root: Path) -> None:
    whole, saves = saved[kind]
    assert all(metrics["rollout/extra_prompts"] > 0 for metrics in whole.recorder.metrics)
    options = {"prompts": source(kind, root), "annotator": Scores(some_flat), "ckpt_path": saves.folder / f"{moment}.ckpt"}
    resumed = run(root, tiny, **options, **SEARCH)
    assert read(resumed) == read(whole)[2:]
    assert differing(whole.state, resumed.state) == []


class Flattened(KillAt):
    def __call__(self, prompt: Any, texts: Any) -> list[float]:
        super().__call__(prompt, texts)
        return some_flat(prompt, texts)


@kinds
@pytest.mark.parametrize("number", [9, 22])
def test_resumed_from_a_failure_in_the_search(kind: str, number: int, saved: dict[str, tuple[Fit, Saves]], tiny: str, root: Path) -> None:
    """The rollout that was being made is read again; labels that were given are not asked for again."""
    killed, again = Scores(Flattened(number)), Scores(some_flat)
    with pytest.raises(Killed):
        run(root, tiny, [SavesItsEnd(root)], annotator=killed, prompts=source(kind, root), **SEARCH)
    resumed = run(root, tiny, annotator=again, prompts=source(kind, root), ckpt_path=root / "end.ckpt", **SEARCH)
    whole = saved[kind][0]
    assert differing(whole.state, resumed.state) == []
    assert resumed.recorder.metrics[-1]["labels/used"] == whole.recorder.metrics[-1]["labels/used"]


class Counts(RolloutCallback):
    """What a progress bar is told."""

    def __init__(self) -> None:
        self.total, self.seen = 0, []

    def on_rollout_start(self, trainer: Any, module: Any, rollout: int, total: int) -> None:
        self.total = total

    def on_rollout_progress(self, trainer: Any, module: Any, sampled: int, annotated: int) -> None:
        self.seen.append((sampled, annotated))


def test_progress_goes_on_beyond_the_total(tiny: str, root: Path) -> None:
    counts = Counts()
    trainer = {"max_epochs": 1}
    fit(root, tiny, annotator=Scores(all_flat), max_extra_prompts=3, chunk_prompts=4, callbacks=[counts], trainer=trainer)
    assert counts.total == 32
    assert counts.seen == [(16, 0), (16, 16), (32, 16), (32, 32), (44, 32), (44, 44)]


@pytest.mark.parametrize("options", [{"max_extra_prompts": -1}, {"max_extra_prompts": 4, "responses_per_prompt": 1}])
def test_a_search_that_can_find_nothing_is_refused(options: dict[str, int], tiny: str, root: Path) -> None:
    from lit_align.algorithms import KTO
    from lit_align.models import CausalPolicy

    with pytest.raises(UserError, match="max_extra_prompts should be 0 or, with at least 2 responses"):
        fit(root, tiny, module=KTO(CausalPolicy(tiny)), **options)
