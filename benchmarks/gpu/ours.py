"""A loop of lit_align: its sampler, its algorithms, Lightning's Trainer."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.gpu.case import RESPONSES, Algorithm, Case
from benchmarks.gpu.timing import Clock, Steps
from benchmarks.runs import BARE
from benchmarks.vs_trl.case import BETA, CLIP, LEARNING_RATE
from benchmarks.vs_trl.world import rule
from lit_align.algorithms import DPO, RLOO, AlignmentModule
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts, OnlineDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.models.faster import standing_way
from lit_align.types import AlignmentBatch, EncodedPrompt, Policy, Rollouts, Sampler, Stream


@final
class TimedSampler(Sampler):
    """The product's own, whose time is counted apart."""

    def __init__(self, tokens: int, steps: Steps) -> None:
        self.max_new_tokens, self._steps = tokens, steps

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """See `Sampler.sample`."""
        sampler = CacheSampler(self.max_new_tokens)
        said = self._steps.sample(lambda: sampler.sample(policy, prompts, responses_per_prompt, stream))
        assert said.response_mask.all(), "lengths were forced"
        return said


@final
class Hand(Callback):
    """Ends a step where an epoch ends, and stops the run when time is up."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AlignmentBatch, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.num_training_batches and not self._steps.end():
            trainer.should_stop = True


def run(algorithm: Algorithm, case: Case, folder: Path, clock: Clock, device: torch.device) -> dict[str, Any]:
    """Its line; ``mfu`` is of everything in a step but sampling."""
    lora = LoRA() if case.shape.lora else None
    policy = CausalPolicy(str(folder), dtype="bfloat16" if lora else "float32", lora=lora, gradient_checkpointing=lora is not None)
    policy.eos_ids = frozenset({policy.model.config.vocab_size})
    texts, k, steps = case.texts(algorithm), RESPONSES[algorithm], Steps(clock)
    data = OnlineDataModule(
        ListPrompts(texts),
        TimedSampler(case.tokens, steps),
        FunctionAnnotator(rule),
        prompts_per_rollout=len(texts),
        responses_per_prompt=k,
        micro_batch_prompts=case.micro_batch // k,
        chunk_prompts=len(texts),
    )
    trainer = Trainer(
        accelerator=device.type if device.type == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=case.repeats + 1,
        accumulate_grad_batches=case.sequences // case.micro_batch,
        gradient_clip_val=CLIP,
        default_root_dir=folder / "ours",
        callbacks=[Hand(steps)],
        **BARE,
    )
    trainer.fit(make_module(algorithm, policy), data)
    tokens, prompts = case.sequences * case.tokens, sum(len(policy.encode(prompt)) for prompt in ListPrompts(texts))
    read = tokens + k * prompts
    line = steps.line(tokens, read)
    flops = flops_of(policy, prompts, tokens)
    return line | {
        "mfu": flops / line["training_seconds"] / case.flops,
        "flops": flops,
        "way": standing_way(policy.way, policy.model).__name__,
        "read_tokens": read,
    }


def flops_of(policy: CausalPolicy, prompts: int, responses: int) -> int:
    """What the model's own products need in a training step, however they are computed: 6 a token for each weight that is trained, 4 for
    each that is frozen. Each of the ``prompts`` tokens is read once for all responses; the head reads ``responses`` tokens only, and an
    embedding is looked up. Attention and recomputation are not counted."""
    inputs, head = policy.model.get_input_embeddings().weight, policy.model.get_output_embeddings().weight

    def per_token(*weights: torch.Tensor) -> int:
        return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)

    layers = [weight for weight in policy.parameters() if weight is not inputs and weight is not head]
    return per_token(*layers) * (prompts + responses) + per_token(head) * responses


def make_module(algorithm: Algorithm, policy: CausalPolicy) -> AlignmentModule:
    """RLOO without a reference; online DPO has one."""

    def optimizer(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=LEARNING_RATE, weight_decay=0.0)

    match algorithm:
        case "rloo":
            return RLOO(policy, beta=0.0, optimizer=optimizer)
        case "online_dpo":
            return DPO(policy, beta=BETA["online_dpo"], optimizer=optimizer)
