"""Every rate against a clock that is moved by hand."""

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor

import callbacks.throughput
from callbacks import Throughput
from lit_align.algorithms import SFT
from lit_align.data import DemonstrationDataModule, JsonlPrompts
from lit_align.models import CausalPolicy
from tests.callbacks.doubles import Module, fit, make_rollout, make_stage
from tests.tiny import adamw, make_data


class Clock:
    """Seconds, as a test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Gathering(Module):
    """The first of two ranks; the other one saw ``other``."""

    other = (0.0, 0.0, 0.0)

    def all_gather(self, value: Tensor) -> Tensor:
        return torch.stack([value, torch.tensor(self.other)])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(callbacks.throughput, "perf_counter", clock)
    return clock


def sample(callback: Throughput, clock: Clock, stage: Any, module: Module) -> None:
    """Two chunks: 3 and 1 s to sample, 2 and 4 s to annotate, then 10 s of the algorithm; 2 x 4 responses of 2 tokens."""
    callback.on_rollout_start(stage, module, 12, 8)  # type: ignore[arg-type]
    for seconds, sampled, annotated in ((3, 4, 0), (2, 4, 4), (1, 8, 4), (4, 8, 8)):
        clock.now += seconds
        callback.on_rollout_progress(stage, module, sampled, annotated)  # type: ignore[arg-type]
    clock.now += 10
    callback.on_rollout_end(stage, module, *make_rollout(torch.zeros(2, 4)), {})  # type: ignore[arg-type]


def test_the_rollout_phase_counts_sampled_tokens_and_says_what_annotation_took(tmp_path, clock):
    callback, module, stage = Throughput(), Module(), make_stage(tmp_path)
    sample(callback, clock, stage, module)
    assert module.logged == pytest.approx({"throughput/rollout_tokens_per_second": 16 / 20, "throughput/annotation_share": 6 / 20})
    module.logged.clear()
    sample(callback, clock, stage, module)
    assert module.logged["throughput/annotation_share"] == pytest.approx(6 / 20), "nothing is left of the rollout before"


def test_ranks_add_up_their_tokens_over_the_time_of_the_slowest(tmp_path, clock):
    module = Gathering()
    module.other = (24.0, 40.0, 0.1)
    sample(Throughput(), clock, make_stage(tmp_path), module)
    assert module.logged == pytest.approx({"throughput/rollout_tokens_per_second": (16 + 24) / 40, "throughput/annotation_share": 6 / 20})


def test_training_counts_what_steps_read_and_not_what_lies_between_them(tmp_path, clock):
    callback, module, stage = Throughput(), Module(), make_stage(tmp_path, 7)
    batch = make_rollout(torch.zeros(2, 3))[2]  # 2 prompts of no token, their mask is False
    prompt_mask = torch.tensor([[False], [True]])
    batch = type(batch)(**{name: getattr(batch, name) for name in type(batch).__dataclass_fields__} | {"prompt_mask": prompt_mask})
    for _ in range(2):  # the second epoch starts from nothing
        callback.on_train_epoch_start(stage, module)  # type: ignore[arg-type]
        for _ in range(3):
            clock.now += 50  # an evaluation
            callback.on_train_batch_start(stage, module, batch, 0)  # type: ignore[arg-type]
            clock.now += 2
            callback.on_train_batch_end(stage, module, {}, batch, 0)  # type: ignore[arg-type]
        callback.on_train_epoch_end(stage, module)  # type: ignore[arg-type]
        expected = 3 * (2 * 3 * 2 + 1 * 3) / 6  # responses of two tokens; one prompt token that each of three responses reads
        assert float(stage.callback_metrics["throughput/train_tokens_per_second"]) == pytest.approx(expected)


def test_an_epoch_without_a_step_has_no_rate(tmp_path, clock):
    callback, stage = Throughput(), make_stage(tmp_path)
    callback.on_train_epoch_start(stage, Module())  # type: ignore[arg-type]
    callback.on_train_epoch_end(stage, Module())  # type: ignore[arg-type]
    assert stage.callback_metrics == {}


class Tokens(Callback):
    """All that a fit reads, by its masks."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.read = clock, [0.0, 0.0]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.clock.now += 1
        responses = batch.response_mask.shape[1]
        self.read[trainer.current_epoch] += float(batch.response_mask.sum() + responses * batch.prompt_mask.sum())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_fit_logs_over_rollouts(root, model, clock, accumulate):
    tokens = Tokens(clock)
    _, curves = fit(root, model, [tokens, Throughput()], data=make_data(micro_batch_prompts=2), accumulate_grad_batches=accumulate)
    assert curves["throughput/train_tokens_per_second"] == pytest.approx({i: read / 4 for i, read in enumerate(tokens.read)})
    assert list(curves["throughput/rollout_tokens_per_second"]) == [0, 1]


def test_supervised_training_has_its_rate_too(root, tmp_path, model, clock):
    (tmp_path / "answers.jsonl").write_text('{"prompt": "ab", "answer": "cd"}\n' * 8, encoding="utf-8")
    answers = JsonlPrompts(str(tmp_path / "answers.jsonl"), reference_field="answer")
    data = DemonstrationDataModule(answers, None, prompts_per_rollout=8, micro_batch_prompts=4, max_response_tokens=8)
    _, curves = fit(root, model, [Tokens(clock), Throughput()], module=SFT(CausalPolicy(model), optimizer=adamw()), data=data)
    expected = 8 * (2 + 3) / 2  # two letters are read, two letters and EOS are learnt; two micro-batches of a second
    assert curves["throughput/train_tokens_per_second"] == pytest.approx({0: expected, 1: expected})
    assert "throughput/rollout_tokens_per_second" not in curves
