"""A rollout and its optimizer steps by an algorithm of ours, through the whole wheel, and what they did."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lit_align.algorithms import AlignmentModule
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, Prompt, RolloutCallback, Rollouts
from tests.tiny import PROMPTS, make_data, make_trainer

Reward = Callable[[Prompt, Sequence[str]], list[float]]

SIZE = 8  # prompts of the rollout
LONGEST = 400  # tokens; nothing comes near it


def untied(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """A reward that no two different texts share."""
    return [2 * math.sin(sum((i + 1) * ord(letter) for i, letter in enumerate(text))) for text in responses]


def first_wins(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """Whatever they say."""
    return [float(-i) for i in range(len(responses))]


def patchy(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """`untied`, but there is no score for the first response to half of the prompts."""
    rewards = untied(prompt, responses)
    return [math.nan, *rewards[1:]] if str(prompt.content)[0] < "d" else rewards


@dataclass(frozen=True)
class Step:
    """One optimizer step: weights before it, the gradient at them, and the loss."""

    weights: dict[str, Tensor]
    gradient: dict[str, Tensor]
    loss: float


@final
class Run(RolloutCallback):
    """Tokens, labels and the prepared batch of a rollout, its optimizer steps, and what was logged."""

    rollouts: Rollouts
    annotation: Annotation
    batch: AlignmentBatch
    metrics: dict[str, float]

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        self.rollouts, self.annotation, self.batch = rollouts, annotation, batch

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module, AlignmentModule)
        assert isinstance(pl_module.policy, CausalPolicy)
        model = pl_module.policy.model
        self._weights = {name: value.clone() for name, value in model.state_dict().items()}
        self._gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self.steps.append(Step(self._weights, self._gradient, float(trainer.callback_metrics["train/loss"])))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}


def make_policy(folder: str) -> CausalPolicy:
    """A policy that has moved away from what its folder has, which is the reference."""
    policy = CausalPolicy(folder)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return policy


def train(
    root: Path,
    module: AlignmentModule,
    *,
    k: int,
    reward: Reward = untied,
    inner_epochs: int = 1,
    prompts: Sequence[str] = PROMPTS,
    callbacks: Sequence[Callback] = (),
) -> Run:
    """``SIZE`` prompts of mixed lengths x K responses; an optimizer step is all of them, in four micro-batches."""
    run = Run()
    data = make_data(
        prompts=ListPrompts(prompts),
        sampler=CacheSampler(max_new_tokens=LONGEST),
        annotator=FunctionAnnotator(reward),
        prompts_per_rollout=SIZE,
        responses_per_prompt=k,
        micro_batch_prompts=SIZE // 4,
        inner_epochs=inner_epochs,
    )
    make_trainer(root, callbacks=[run, *callbacks], max_epochs=1, accumulate_grad_batches=4).fit(module, data)
    assert run.rollouts.finished.all(), "nothing may be truncated"
    return run
