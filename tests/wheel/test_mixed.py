"""Fixed and fresh rows in one rollout: who answers, who is asked, what is trained on, and after a stop the same."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from callbacks import Histograms, KLMonitor, SampleTable, Throughput, WeightClipping
from lit_align.algorithms import DPO, IPO, RLOO, SAIL, AlignmentModule, SLiC
from lit_align.annotators import WeightedSum
from lit_align.data import ListPrompts, MixedDataModule, PreferenceDataModule
from lit_align.data.routes import Routes, uniforms
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, Annotation, Annotator, Ask, EncodedPrompt, Prompt, RolloutCallback, Rollouts, Source, UserError
from tests.data.test_demonstrations import Batches
from tests.pairs import ListPairs
from tests.tiny import PROMPTS, adamw, make_data, sgd
from tests.wheel.harness import Fit, Killed, Scores, differing, fit
from tests.wheel.test_resume import KillAt, Saves, SavesItsEnd, kept

ROWS = [(prompt, ["ab", "ja d"], [1.0, 0.0]) for prompt in PROMPTS]
THIRDS = {"relabel": 0.25, "fresh_self": 0.25, "fresh_annotated": 0.25}


def prompts(count: int) -> list[EncodedPrompt]:
    return [EncodedPrompt(Prompt(i, ""), (1,), occurrence=i % 3) for i in range(count)]


def make_sail(model: str, **options: Any) -> SAIL:
    return SAIL(CausalPolicy(model), **({"beta": 0.5, "optimizer": adamw()} | options))


def mixed(**options: Any) -> MixedDataModule:
    """One optimizer step per rollout of 16 prompts."""
    defaults = {"prompts": ListPairs(ROWS), "sampler": CacheSampler(max_new_tokens=6), "annotator": Scores(), "prompts_per_rollout": 16}
    return MixedDataModule(**(defaults | {"micro_batch_prompts": 4, "max_response_tokens": 10, "chunk_prompts": 3} | THIRDS | options))


def run(root: Path, model: str, callbacks: Any = (), trainer: dict[str, Any] | None = None, ckpt_path: Any = None, **options: Any) -> Fit:
    trainer = {"max_epochs": 3, "accumulate_grad_batches": 4} | (trainer or {})
    return fit(root, model, module=make_sail(model), data=mixed(**options), callbacks=callbacks, trainer=trainer, ckpt_path=ckpt_path)


def whole_batch(parts: list[AlignmentBatch], name: str) -> list[Any]:
    return [value for part in parts for value in getattr(part, name).tolist()]


# Routes


def test_routes_come_as_often_as_they_should_and_independently_of_labels() -> None:
    routes, count = Routes(0.1, 0.3, 0.25), 20_000
    found, labels = routes.sources(0, 7, prompts(count)), torch.tensor(uniforms(0, "label", 7, prompts(count)))
    for source, chance in zip(Source, (0.35, 0.1, 0.3, 0.25), strict=True):
        here = torch.tensor([each == source for each in found])
        tolerance = 4 * math.sqrt(chance * (1 - chance) / count)
        assert float(here.double().mean()) == pytest.approx(chance, abs=tolerance)
        assert float(labels[here].mean()) == pytest.approx(0.5, abs=4 * math.sqrt(1 / 12 / (chance * count)))
    assert labels.min() >= 0
    assert labels.max() <= 1
    assert float(labels.var()) == pytest.approx(1 / 12, rel=0.03)


def test_a_route_is_the_prompts_own() -> None:
    routes, some = Routes(0.2, 0.3, 0.3), prompts(60)
    assert routes.sources(0, 1, some[::-1]) == routes.sources(0, 1, some)[::-1]
    for seed, rollout in ((1, 1), (0, 2)):
        assert routes.sources(seed, rollout, some) != routes.sources(0, 1, some)
    again = [EncodedPrompt(each.prompt, each.tokens, each.occurrence + 1) for each in some]
    assert routes.sources(0, 1, again) != routes.sources(0, 1, some)


@pytest.mark.parametrize("chances", [(-0.1, 0, 0), (0.5, 0.5, 0.1), (math.nan, 0, 0)])
def test_what_is_no_mixture_is_refused(chances: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="add up to at most 1"):
        Routes(*chances)


def test_a_certain_route_is_taken_by_all() -> None:
    assert set(Routes(0, 0, 0).sources(0, 0, prompts(99))) == {Source.FIXED}
    assert set(Routes(0.1, 0.2, 0.7).sources(0, 0, prompts(999))) == set(Source) - {Source.FIXED}


# One rollout


@pytest.fixture(scope="module")
def one(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, list[AlignmentBatch]]:
    batches = Batches()
    root = tmp_path_factory.mktemp("one")
    return run(root, tiny, [batches], {"max_epochs": 1}), batches.seen


def test_every_row_is_what_its_source_says(one: tuple[Fit, list[AlignmentBatch]]) -> None:
    result, parts = one
    asked, policy = result.data.annotator.asked, result.module.policy  # pyright: ignore[reportAttributeAccessIssue]
    told, seen = result.recorder.rollouts[0], 0
    for part in parts:
        assert part.source is not None
        assert part.sampling_logps is not None
        for row, source in enumerate(part.source.tolist()):
            index = int(part.prompt_ids[row])
            prompt = policy.encode(Prompt(index, PROMPTS[index]))
            assert part.prompt_tokens[row][part.prompt_mask[row]].tolist() == prompt, "the prompt is the row's own"
            said = [part.response_tokens[row, k][part.response_mask[row, k]].tolist() for k in range(2)]
            fresh = source >= Source.FRESH_SELF
            assert (said == [policy.encode_response(Prompt(index, PROMPTS[index]), text) for text in ROWS[index][1]]) == (not fresh)
            assert bool(part.sampling_logps[row].any()) == fresh
            assert (index in asked) == (source == Source.FRESH_ANNOTATED)
            if fresh:
                heard = [prompt.id for prompt in told.prompts].index(index)
                assert said == [told.response_tokens[heard, k][told.response_mask[heard, k]].tolist() for k in range(2)]
                seen += 1
    assert seen == len(told.prompts) < 16
    counts = {source.name.lower(): whole_batch(parts, "source").count(source) for source in Source}
    assert {name.removeprefix("rows/"): n for name, n in result.recorder.metrics[0].items() if name.startswith("rows/")} == counts
    assert min(counts.values()) >= 2
    assert result.recorder.metrics[0]["labels/used"] == 2 * counts["fresh_annotated"]


def test_self_labelled_rows_have_a_pair_and_no_label(one: tuple[Fit, list[AlignmentBatch]]) -> None:
    _, parts = one
    for part in parts:
        assert part.pairs is not None
        assert part.source is not None
        own = part.source == Source.FRESH_SELF
        assert (~part.pairs[own].isnan()).nonzero()[:, 1:].tolist() == [[0, 1]] * int(own.sum())
        assert part.scores[own].abs().sum() == 0
        data = part.source <= Source.RELABEL
        assert (~part.pairs[data].isnan()).nonzero()[:, 1:].tolist() == [[0, 1]] * int(data.sum()), "whose first is the better one"


def test_callbacks_hear_of_the_fresh_rows(one: tuple[Fit, list[AlignmentBatch]]) -> None:
    result, _ = one
    (rollouts,), (annotation,), (batch,) = result.recorder.rollouts, result.recorder.annotations, result.recorder.batches
    assert len(rollouts.prompts) == len(annotation.scores) == len(batch.scores)
    assert batch.prompt_ids.tolist() == [prompt.id for prompt in rollouts.prompts]
    assert batch.source is not None
    assert annotation.valid.any(-1).tolist() == (batch.source == Source.FRESH_ANNOTATED).tolist()
    assert torch.equal(batch.response_mask.sum(-1), rollouts.response_mask.sum(-1))


class Starts(RolloutCallback):
    """How many responses rollouts were said to have when they began."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_rollout_start(self, trainer: Trainer, module: LightningModule, rollout: int, total: int) -> None:
        self.seen.append(total)


def test_callbacks_hear_of_a_rollout_without_a_fresh_row(tiny: str, root: Path) -> None:
    starts = Starts()
    watching = [KLMonitor(), WeightClipping(), SampleTable(), Histograms(), Throughput(), starts]
    chances = {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 1e-6}
    result = run(root, tiny, watching, {"max_epochs": 1}, **chances)
    (rollouts,), (annotation,), (batch,) = result.recorder.rollouts, result.recorder.annotations, result.recorder.batches
    assert starts.seen == [0]
    assert rollouts.response_tokens.shape == (0, 2, 0)
    assert annotation.scores.shape == batch.scores.shape == (0, 2)
    assert result.recorder.metrics[0]["rows/fixed"] == 16
    assert "kl/reference" not in result.recorder.metrics[0], "nothing is known of it"


def test_callbacks_hear_nothing_where_the_policy_answers_nothing(tiny: str, root: Path) -> None:
    starts = Starts()
    result = run(root, tiny, [starts], {"max_epochs": 1}, fresh_self=0.0, fresh_annotated=0.0)
    assert not starts.seen
    assert not result.recorder.rollouts


class Judge(Annotator):
    """The second of two answers is better."""

    def annotate(self, rollouts: Rollouts) -> Annotation:
        b, k = rollouts.response_tokens.shape[:2]
        told = torch.tensor([[math.nan, 0.1], [0.9, math.nan]]).expand(b, k, k)
        return Annotation(scores=torch.zeros(b, k), valid=torch.ones(b, k, dtype=torch.bool), preferences=told)


def test_a_judges_preferences_stand_beside_the_datas_scores(tiny: str, root: Path) -> None:
    batches = Batches()
    run(root, tiny, [batches], {"max_epochs": 1}, annotator=Judge())
    for part in batches.seen:
        assert part.pairs is not None
        assert part.source is not None
        judged = (part.source == Source.FRESH_ANNOTATED).tolist()
        assert (~part.pairs.isnan()).nonzero()[:, 1:].tolist() == [[1, 0] if each else [0, 1] for each in judged]


def test_without_fresh_rows_it_is_the_same_run_as_on_fixed_data(tiny: str, root: Path) -> None:
    nobody = {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 0.0, "annotator": None}
    trainer = {"max_epochs": 2, "accumulate_grad_batches": 4}
    data = PreferenceDataModule(ListPairs(ROWS), prompts_per_rollout=16, micro_batch_prompts=4, max_response_tokens=10)
    fixed = fit(root / "fixed", tiny, module=make_sail(tiny), data=data, trainer=trainer)
    assert differing(fixed.state, run(root / "mixed", tiny, trainer=trainer, **nobody).state) == []
    plain = DPO(CausalPolicy(tiny), beta=0.5, optimizer=adamw())
    data = PreferenceDataModule(ListPairs(ROWS), prompts_per_rollout=16, micro_batch_prompts=4, max_response_tokens=10)
    assert differing(fixed.state, fit(root / "dpo", tiny, module=plain, data=data, trainer=trainer).state) == []


def test_a_mixture_with_fewer_fixed_rows_runs_for_longer(tiny: str, root: Path) -> None:
    """Two passes of 16 prompts, of which half are fixed, 8 to a rollout: 8 rollouts."""
    options = {"relabel": 0.5, "fresh_self": 0.0, "fresh_annotated": 0.0, "fixed_passes": 2, "prompts_per_rollout": 8}
    result = run(root, tiny, trainer={"accumulate_grad_batches": 2}, **options)
    assert (result.trainer.current_epoch, result.trainer.max_epochs) == (8, 8)


# Stopped and resumed


@pytest.fixture(scope="module")
def whole(tiny_with_dropout: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Fit, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder / "run", tiny_with_dropout, [Saves(folder)]), folder


@pytest.mark.parametrize("moment", ["before-0", "after-1", "before-3", "after-3"])
def test_resumed_in_the_middle_of_a_mixed_rollout(moment: str, whole: tuple[Fit, Path], tiny_with_dropout: str, root: Path) -> None:
    resumed = run(root, tiny_with_dropout, ckpt_path=whole[1] / f"{moment}.ckpt")
    assert differing(whole[0].state, resumed.state) == []
    assert len(resumed.recorder.rollouts) == 1, "the rollout under way came with the checkpoint"
    assert resumed.recorder.losses[-1] == whole[0].recorder.losses[-1]


def test_killed_while_annotating(whole: tuple[Fit, Path], tiny_with_dropout: str, root: Path) -> None:
    killed, again = Scores(KillAt(8)), Scores()
    checkpoints = {"enable_checkpointing": True}
    with pytest.raises(Killed):
        run(root, tiny_with_dropout, [kept(root), SavesItsEnd(root)], checkpoints, annotator=killed)
    resumed = run(root, tiny_with_dropout, [kept(root)], checkpoints, annotator=again, ckpt_path=root / "end.ckpt")
    assert differing(whole[0].state, resumed.state) == []
    everyone = whole[0].data.annotator.asked  # pyright: ignore[reportAttributeAccessIssue]
    assert len(everyone) <= len(killed.asked) + len(again.asked) <= len(everyone) + 3, "the chunk in flight is asked about again"


# Refused


@pytest.mark.parametrize("kind", [DPO, IPO, SLiC])
@pytest.mark.parametrize("route", ["relabel", "fresh_self"])
def test_who_takes_labels_as_they_come_gets_none_of_the_policys(kind: type[AlignmentModule], route: str, tiny: str, root: Path) -> None:
    nobody = {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 0.0}
    module = kind(CausalPolicy(tiny), optimizer=sgd())  # pyright: ignore[reportCallIssue]
    with pytest.raises(UserError, match=rf"{kind.__name__} takes labels as they come.*Set both to 0, or choose an algorithm"):
        fit(root, tiny, module=module, data=mixed(**(nobody | {route: 0.2})), trainer={"accumulate_grad_batches": 4})


def test_dpo_mixes_fixed_and_annotated_rows(tiny: str, root: Path) -> None:
    options = {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 0.6, "inner_epochs": 2}
    module = DPO(CausalPolicy(tiny), optimizer=adamw())
    result = fit(root, tiny, module=module, data=mixed(**options), trainer={"max_epochs": 1, "accumulate_grad_batches": 2})
    assert result.trainer.global_step == 4
    assert {*result.recorder.metrics[0]} >= {"rows/fixed", "rows/fresh_annotated", "reward/mean"}


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"inner_epochs": 2}, "SAIL as configured is right only for samples of exactly the policy being trained.*Set inner_epochs to 1"),
        ({"micro_batch_prompts": 1}, "makes 4 optimizer steps. Set inner_epochs to 1 and prompts_per_rollout to 4"),
        ({"annotator": None}, "fresh_annotated = 0.25 asks an annotator, but there is none"),
        ({"responses_per_prompt": 1}, "needs at least 2 of them, got responses_per_prompt = 1"),
        ({"prompts": ListPrompts(PROMPTS)}, "Fixed data need an answer to every prompt"),
        ({"fixed_passes": 0.0}, "fixed_passes should be a positive number of passes"),
        ({"fixed_passes": 1.0, "fresh_self": 0.5}, "with a share of 0 and ListPairs. Leave it out, and set trainer.max_epochs"),
    ],
)
def test_what_cannot_be_right_is_refused_with_its_remedy(options: dict[str, Any], match: str, tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=match):
        run(root, tiny, **options)


def test_labels_alone_take_any_number_of_steps(tiny: str, root: Path) -> None:
    options = {"relabel": 0.5, "fresh_self": 0.0, "fresh_annotated": 0.0, "inner_epochs": 2, "annotator": None}
    assert run(root, tiny, trainer={"max_epochs": 1, "accumulate_grad_batches": 2}, **options).trainer.global_step == 4


def test_who_trains_on_samples_wants_nothing_else(tiny: str, root: Path) -> None:
    nobody, everybody = (
        {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 0.9},
        {"relabel": 0.0, "fresh_self": 0.0, "fresh_annotated": 1.0},
    )
    trainer = {"max_epochs": 1, "accumulate_grad_batches": 4}
    with pytest.raises(UserError, match=r"RLOO trains on samples of the policy, but only 0\.9 of the rows are"):
        fit(root, tiny, module=RLOO(CausalPolicy(tiny), optimizer=sgd()), data=mixed(**nobody), trainer=trainer)
    module = RLOO(CausalPolicy(tiny), optimizer=sgd())
    ours = fit(root / "a", tiny, module=module, data=mixed(**everybody, prompts=ListPrompts(PROMPTS)), trainer=trainer)
    module = RLOO(CausalPolicy(tiny), optimizer=sgd())
    online = {"prompts_per_rollout": 16, "responses_per_prompt": 2, "annotator": Scores(), "chunk_prompts": 3}
    data = make_data(**online, sampler=CacheSampler(max_new_tokens=6))
    assert differing(ours.state, fit(root / "b", tiny, module=module, data=data, trainer=trainer).state) == []


class Comparer(Scores):
    """A judge that prefers whoever is shown first, and says what its scores were made of."""

    def annotate(self, rollouts: Rollouts) -> Annotation:
        said = super().annotate(rollouts)
        first = torch.full((*said.scores.shape, said.scores.shape[1]), 0.9)
        first.diagonal(dim1=1, dim2=2).fill_(math.nan)
        preferences = first.where(first.isnan(), 0.5)
        return replace(said, preferences=preferences, seen_first=first, parts={"vowels": said.scores * 2})


def test_all_that_an_annotator_says_of_a_mixture_is_measured(tiny: str, root: Path) -> None:
    """And a wrapper around one that does not learn is welcome."""
    weighted = WeightedSum([Comparer()], [1.0])
    assert not weighted.learns
    metrics = run(root / "a", tiny, annotator=Comparer(), trainer={"max_epochs": 1}).recorder.metrics[-1]
    assert (metrics["labels/flips"], metrics["labels/ties"]) == (1, 1)
    assert metrics["reward/vowels"] == pytest.approx(2 * metrics["reward/mean"])
    assert run(root / "b", tiny, annotator=weighted, trainer={"max_epochs": 1}).recorder.metrics[-1]["labels/ties"] == 1


def test_an_annotator_that_learns_is_refused_however_it_is_wrapped(tiny: str, root: Path) -> None:
    class Learner(Scores):
        def learn(self, rollouts: Rollouts, ask: Ask) -> Mapping[str, float]:
            return {}

    for number, annotator in enumerate((Learner(), WeightedSum([Scores(), Learner()], [1.0, 1.0]))):
        assert annotator.learns
        with pytest.raises(UserError, match=r"learns from rollouts .* Use OnlineDataModule"):
            run(root / str(number), tiny, annotator=annotator)
