"""The case as a run of lit_align: its data modules, its algorithms, Lightning's Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.runs import BARE
from benchmarks.vs_trl.case import BETA, CLIP, LEARNING_RATE, Case
from benchmarks.vs_trl.turns import EndOfTurn
from benchmarks.vs_trl.world import World, rule
from lit_align.algorithms import DAR, DPO, GRPO, RLOO, SFT, AlignmentModule
from lit_align.annotators import FunctionAnnotator
from lit_align.data import DemonstrationDataModule, ListPrompts, OnlineDataModule, PreferenceDataModule
from lit_align.data.base import AlignmentDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, Answer, IndexedPrompts, Prompt, Sampler


@final
class FixedAnswers(IndexedPrompts):
    """The prompts of a world with its answers: one, or a better and a worse one."""

    def __init__(self, world: World, pairs: bool) -> None:
        self.name, self._world, self._pairs = "bench", world, pairs

    def __len__(self) -> int:
        return len(self._world.prompts)

    def __getitem__(self, index: int) -> Prompt:
        one, other = self._world.answers[index]
        answers = (Answer(one, 1.0), Answer(other, 0.0)) if self._pairs else ()
        return Prompt(index, self._world.prompts[index], reference=one, answers=answers)


@final
class Hand(Callback):
    """Ends a turn where an epoch ends, which is one rollout and one optimizer step."""

    def __init__(self, end_of_turn: EndOfTurn) -> None:
        self._end_of_turn, self._tokens = end_of_turn, (0, 0)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: AlignmentBatch, batch_idx: int) -> None:
        self._tokens = int(batch.prompt_mask.sum()), int(batch.response_mask.sum())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._end_of_turn(*self._tokens):
            trainer.should_stop = True


def make_policy(case: Case, world: World) -> CausalPolicy:
    """The policy, which where lengths are forced knows of no end that can be drawn."""
    policy = CausalPolicy(world.model)
    if case.forced:
        policy.eos_ids = frozenset({policy.model.config.vocab_size})
    return policy


def make_module(case: Case, policy: CausalPolicy, lr: float = LEARNING_RATE) -> AlignmentModule:
    """The algorithm; `theirs` has the same numbers. DAR has its defaults; as RLOO's, its reference is a frozen copy of the policy."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)

    match case.algorithm:
        case "sft":
            return SFT(policy, optimizer=optimizer)
        case "rloo":
            return RLOO(policy, beta=BETA["rloo"], optimizer=optimizer)
        case "grpo":
            return GRPO(policy, beta=BETA["grpo"], optimizer=optimizer)
        case "dpo" | "online_dpo":
            return DPO(policy, beta=BETA[case.algorithm], optimizer=optimizer)
        case "dar":
            return DAR(policy, optimizer=optimizer)


def make_data(case: Case, world: World, sampler: Sampler | None = None) -> AlignmentDataModule:
    """Every epoch has all prompts of the world; ``sampler`` instead of the product's own."""
    sizes = {"prompts_per_rollout": case.prompts, "micro_batch_prompts": case.prompts}
    if case.online:
        sampler = CacheSampler(max_new_tokens=case.response_tokens) if sampler is None else sampler
        return OnlineDataModule(ListPrompts(world.prompts), sampler, FunctionAnnotator(rule), responses_per_prompt=case.k, **sizes)
    kind = DemonstrationDataModule if case.algorithm == "sft" else PreferenceDataModule
    return kind(FixedAnswers(world, case.algorithm == "dpo"), max_response_tokens=2 * case.response_tokens, **sizes)


def fit(module: AlignmentModule, data: AlignmentDataModule, root: Path, epochs: int, callbacks: Sequence[Callback]) -> None:
    """So many optimizer steps."""
    Trainer(
        accelerator="cpu",
        devices=1,
        precision="32-true",
        max_epochs=epochs,
        gradient_clip_val=CLIP,
        default_root_dir=root,
        callbacks=list(callbacks),
        **BARE,
    ).fit(module, data)
