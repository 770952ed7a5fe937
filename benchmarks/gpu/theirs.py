"""A loop of TRL: its own trainers. Imports TRL, so nothing but a part that needs it may import this."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback, TrainerCallback
from trl import RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from benchmarks.gpu.case import RESPONSES, Algorithm, Case
from benchmarks.gpu.timing import Clock, Steps
from benchmarks.vs_trl.case import BETA, CLIP, LEARNING_RATE
from benchmarks.vs_trl.world import rule
from lit_align.models import LoRA

SETTINGS = (
    "bf16=True, optim='adamw_torch', one update per rollout, generate of transformers; RLOO: a rollout is sampled at once, checkpointing "
    "where lit_align has it; online DPO: sampled in micro-batches, as it does, without checkpointing, with which it samples without a cache"
)


@final
class Hand(TrainerCallback):
    """Ends a step."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._steps.end():
            control.should_training_stop = True


@final
class ForcedRule:
    """The reward, and whether every response was as long as it had to be."""

    __name__ = "rule"  # TRL asks its reward functions for it

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        assert {len(tokens) for tokens in completion_ids} == {self._tokens}, "lengths were forced"
        return rule("", completions)


def run(algorithm: Algorithm, case: Case, folder: Path, clock: Clock, device: torch.device, read_tokens: int) -> dict[str, Any]:
    """Its line; sampling is what its ``_generate`` takes."""
    trainer = make_trainer(algorithm, case, folder, device)
    trainer.remove_callback(PrinterCallback)
    steps, generate = Steps(clock), trainer._generate
    trainer._generate = lambda *arguments: steps.sample(lambda: generate(*arguments))
    trainer.add_callback(Hand(steps))
    trainer.train()
    return steps.line(case.sequences * case.tokens, read_tokens) | {"settings": SETTINGS}


def make_trainer(algorithm: Algorithm, case: Case, folder: Path, device: torch.device) -> Any:
    """Ready to train."""
    texts, lora = case.texts(algorithm), case.shape.lora
    rows = case.micro_batch if algorithm == "rloo" else case.micro_batch // RESPONSES[algorithm]
    options: dict[str, Any] = {
        "output_dir": str(folder / "theirs"),
        "per_device_train_batch_size": rows,
        "gradient_accumulation_steps": case.sequences // case.micro_batch,
        "max_steps": case.repeats + 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "max_grad_norm": CLIP,
        "optim": "adamw_torch",
        "train_sampling_strategy": "sequential",
        "bf16": True,
        "gradient_checkpointing": lora and algorithm == "rloo",
        "use_cpu": device.type == "cpu",
        "dataloader_pin_memory": False,
        "report_to": "none",
        "disable_tqdm": True,
        "logging_strategy": "no",
        "save_strategy": "no",
    }
    forced = {"min_new_tokens": case.tokens}
    ours = LoRA()
    parts = {
        "model": load(case, folder),
        "reward_funcs": ForcedRule(case.tokens),
        "processing_class": AutoTokenizer.from_pretrained(folder),
        "train_dataset": Dataset.from_dict({"prompt": texts * (case.repeats + 1)}),
        "peft_config": LoraConfig(r=ours.rank, lora_alpha=ours.alpha, target_modules=ours.targets, task_type="CAUSAL_LM") if lora else None,
    }
    match algorithm:
        case "rloo":
            lengths = {"max_completion_length": case.tokens, "num_generations": RESPONSES["rloo"], "generation_kwargs": forced}
            config = RLOOConfig(**options, **lengths, beta=0.0, temperature=1.0, shuffle_dataset=False)
            return RLOOTrainer(args=config, **parts)
        case "online_dpo":
            lengths = {"max_new_tokens": case.tokens, "max_length": case.prompt_tokens + case.tokens, "generation_kwargs": forced}
            config = OnlineDPOConfig(**options, **lengths, beta=BETA["online_dpo"], temperature=1.0)
            return OnlineDPOTrainer(args=config, ref_model=None if lora else load(case, folder), **parts)


def load(case: Case, folder: Path) -> PreTrainedModel:
    """The model in its folder, in the type that lit_align has it in."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if case.shape.lora else torch.float32)
