"""With every callback or without any, the same weights to the bit, and nothing drawn from the global generators."""

import random
from typing import Any

import numpy
import pytest
import torch
from lightning.pytorch import Callback, seed_everything

import callbacks
from callbacks import (
    Histograms,
    JudgeEvaluation,
    KLMonitor,
    RolloutProgressBar,
    SampleTable,
    Throughput,
    WeightClipping,
)
from lit_align.data import ListPrompts
from lit_align.types import Annotation, Annotator, Rollouts
from tests.callbacks.doubles import Notes, copy_of, fit, same
from tests.tiny import PROMPTS, make_dar, make_data


class Moody(Annotator):
    """A judge that draws from every generator there is."""

    def annotate(self, rollouts: Rollouts) -> Annotation:
        random.random()
        numpy.random.rand()
        scores = torch.rand(rollouts.finished.shape)
        return Annotation(scores=scores, valid=torch.ones_like(scores, dtype=torch.bool))


class Generators(Callback):
    """What the global generators would draw next, and which submodules are in which mode, at every point a callback acts."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def look(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        modes = tuple(module.training for module in pl_module.modules())
        state = numpy.random.get_state()[1]
        self.seen.append((torch.get_rng_state().tolist(), random.getstate(), state.tolist(), modes, torch.is_grad_enabled()))  # type: ignore[union-attr]

    on_train_start = on_train_epoch_start = on_train_batch_end = on_train_epoch_end = on_train_end = look


def everything() -> list[Callback]:
    judge = JudgeEvaluation(Moody(), ListPrompts(PROMPTS[:4]), every_n_rollouts=1)
    seen = [KLMonitor(1e6), WeightClipping(), Histograms(), SampleTable(), RolloutProgressBar()]
    return [judge, *seen, Throughput()]


def test_all_are_here():
    of_reward_models = {"ReliabilityPlot"}  # which have no policy
    assert {type(callback).__name__ for callback in everything()} == set(callbacks.__all__) - of_reward_models


@pytest.mark.parametrize("dropout", [False, True])
def test_watching_changes_nothing(root, model, model_with_dropout, dropout):
    folder = model_with_dropout if dropout else model
    runs = []
    for name, watchers in (("alone", []), ("watched", everything())):
        seed_everything(3)
        notes, generators = Notes(), Generators()
        trainer, _ = fit(
            root / name,
            folder,
            [*watchers, notes, generators],
            module=make_dar(folder),
            data=make_data(micro_batch_prompts=2, inner_epochs=2),
            enable_progress_bar=bool(watchers),
            accumulate_grad_batches=2,
            max_epochs=3,
        )
        runs.append((trainer, notes, generators))
    (alone, bare, before), (watched, seen, after) = runs
    assert alone.global_step == watched.global_step == 12
    assert all(same(one, other) for one, other in zip(bare.weights, seen.weights, strict=True))
    assert same(copy_of(alone.lightning_module.policy), copy_of(watched.lightning_module.policy))
    assert not same(bare.weights[0], bare.weights[-1])
    assert before.seen == after.seen
    assert after.seen[-1][3][0] is True
