"""The case as a run of TRL: its trainers, their own loops. Imports TRL, so nothing but the benchmark's command may import it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from benchmarks.vs_trl.agreement import Rollout, gradient_of
from benchmarks.vs_trl.case import BETA, CLIP, LEARNING_RATE, Case
from benchmarks.vs_trl.turns import EndOfTurn
from benchmarks.vs_trl.world import World, rule


@final
@dataclass
class Counted:
    """The reward, and how many tokens there were when it was last asked for.

    Args:
        tokenizer: of prompts.
        ends: tokens that end a response. Online DPO hands over its padding behind them as well.
    """

    tokenizer: Any
    ends: frozenset[int]
    tokens: tuple[int, int] = (0, 0)
    lengths: dict[str, int] = field(default_factory=dict)

    __name__ = "rule"  # TRL asks its reward functions for it

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], completion_ids: Sequence[Sequence[int]], **_: Any
    ) -> list[float]:
        for prompt in set(prompts) - self.lengths.keys():
            self.lengths[prompt] = len(self.tokenizer(prompt)["input_ids"])
        self.tokens = sum(self.lengths[prompt] for prompt in set(prompts)), sum(map(self._length, completion_ids))
        return rule("", completions)

    def _length(self, tokens: Sequence[int]) -> int:
        return next((i + 1 for i, token in enumerate(tokens) if token in self.ends), len(tokens))


@final
class Hand(TrainerCallback):
    """Ends a turn where a step ends."""

    def __init__(self, end_of_turn: EndOfTurn, tokens: Callable[[], tuple[int, int]]) -> None:
        self._end_of_turn, self._tokens = end_of_turn, tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if not self._end_of_turn(*self._tokens()):
            control.should_training_stop = True


@final
class Peer:
    """TRL's trainer for a case, ready to train.

    Args:
        case: what to compare.
        world: model and texts.
        root: where it may write.
        steps: how many it will take at most.
        model: the policy; None loads it.
    """

    def __init__(self, case: Case, world: World, root: Path, steps: int, model: PreTrainedModel | None = None) -> None:
        self.case, self.world = case, world
        self.tokenizer = AutoTokenizer.from_pretrained(world.model)
        self.model = load(world) if model is None else model
        self.reward = Counted(self.tokenizer, ends_of(self.model, self.tokenizer))
        self.trainer = self._trainer(root, steps)
        self.trainer.remove_callback(PrinterCallback)
        self._fixed_tokens: tuple[int, int] | None = None

    def run(self, end_of_turn: EndOfTurn) -> None:
        """Its loop."""
        self.trainer.add_callback(Hand(end_of_turn, self._tokens))
        self.trainer.train()

    def rollout(self) -> Rollout:
        """One batch of its own, as far as the gradient; rows are taken where RLOO and GRPO have not shuffled them yet."""
        if self.case.algorithm in ("rloo", "grpo"):
            return self._group_rollout()
        if self.case.algorithm == "online_dpo":
            return self._pair_rollout()
        batch = next(iter(self.trainer.get_train_dataloader()))
        loss = self.trainer.compute_loss(self.trainer.model, batch)
        loss.backward()
        return Rollout({}, {}, float(loss.detach()), gradient_of(self.trainer.model))

    def _group_rollout(self) -> Rollout:
        self.trainer.current_gradient_accumulation_steps = 1
        rows = [{"prompt": prompt} for prompt in self.world.prompts for _ in range(self.case.k)]
        inputs = self.trainer._generate_and_score_completions(rows)
        loss = self.trainer._compute_loss(self.trainer.model, inputs)
        loss.backward()
        texts, k = self.world.prompts, self.case.k
        responses = self._listed(inputs["completion_ids"], inputs["completion_mask"])
        return Rollout(
            {prompt: responses[i * k : (i + 1) * k] for i, prompt in enumerate(texts)},
            dict(zip(texts, inputs["advantages"].view(len(texts), k), strict=True)),
            float(loss.detach()),
            gradient_of(self.trainer.model),
        )

    def _pair_rollout(self) -> Rollout:
        found: list[tuple[Tensor, ...]] = []
        generate = self.trainer._generate
        self.trainer._generate = lambda *arguments: found.append(generate(*arguments)) or found[-1]
        self.trainer.optimizer = self.trainer.create_optimizer()
        loss = self.trainer.training_step(self.trainer.model, {"prompt": list(self.world.prompts)})
        responses = self._listed(*found[0][2:4])  # all first ones, then all second ones
        half = len(self.world.prompts)
        paired = {prompt: [responses[i], responses[half + i]] for i, prompt in enumerate(self.world.prompts)}
        return Rollout(paired, {}, float(loss), gradient_of(self.trainer.model))

    def _listed(self, tokens: Tensor, mask: Tensor) -> list[list[int]]:
        return [row[keep].tolist() for row, keep in zip(tokens, mask.bool(), strict=True)]

    def _tokens(self) -> tuple[int, int]:
        if self.case.online:
            return self.reward.tokens
        if self._fixed_tokens is None:
            pairs = self.case.algorithm == "dpo"
            answers = [text for answer in self.world.answers for text in answer[: 1 + pairs]]
            count = [sum(len(ids) for ids in self.tokenizer(texts)["input_ids"]) for texts in (self.world.prompts, answers)]
            self._fixed_tokens = count[0], count[1] + len(answers)  # each has an end
        return self._fixed_tokens

    def _trainer(self, root: Path, steps: int) -> Any:
        case = self.case
        rows = case.prompts * (case.k if case.algorithm in ("rloo", "grpo") else 1)
        options: dict[str, Any] = {
            "output_dir": str(root),
            "per_device_train_batch_size": rows,
            "max_steps": steps,
            "learning_rate": LEARNING_RATE,
            "lr_scheduler_type": "constant",
            "max_grad_norm": CLIP,
            "optim": "adamw_torch_fused",
            "train_sampling_strategy": "sequential",
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "dataloader_pin_memory": False,
            "report_to": "none",
            "disable_tqdm": True,
            "logging_strategy": "no",
            "save_strategy": "no",
        }
        shared = {"processing_class": self.tokenizer, "model": self.model}
        forced = {"min_new_tokens": case.response_tokens} if case.forced else None
        group = {"num_generations": case.k, "max_completion_length": case.response_tokens, "generation_kwargs": forced}
        group |= {"shuffle_dataset": False, "temperature": 1.0}
        longest = case.prompt_tokens + 2 * case.response_tokens
        match case.algorithm:
            case "rloo":
                config = RLOOConfig(**options, **group, beta=BETA["rloo"])
                return RLOOTrainer(args=config, reward_funcs=self.reward, train_dataset=self._asked(steps), **shared)
            case "grpo":
                config = GRPOConfig(**options, **group, beta=BETA["grpo"], loss_type="grpo", use_bias_correction_kl=False)
                return GRPOTrainer(args=config, reward_funcs=self.reward, train_dataset=self._asked(steps), **shared)
            case "online_dpo":
                lengths = {"max_new_tokens": case.response_tokens, "max_length": longest, "generation_kwargs": forced}
                config = OnlineDPOConfig(**options, **lengths, beta=BETA["online_dpo"], temperature=1.0)
                data = {"reward_funcs": self.reward, "train_dataset": self._asked(steps)}
                return OnlineDPOTrainer(args=config, ref_model=load(self.world), **data, **shared)
            case "sft":
                config = SFTConfig(**options, max_length=longest)
                return SFTTrainer(args=config, train_dataset=self._answered(steps, ["completion"]), **shared)
            case "dpo":
                config = DPOConfig(**options, beta=BETA["dpo"], max_length=longest)
                data = self._answered(steps, ["chosen", "rejected"])
                return DPOTrainer(args=config, ref_model=load(self.world), train_dataset=data, **shared)

    def _asked(self, steps: int) -> Dataset:
        """The same prompts at every step."""
        return Dataset.from_dict({"prompt": self.world.prompts * steps})

    def _answered(self, steps: int, columns: Sequence[str]) -> Dataset:
        answers = {name: [answer[i] for answer in self.world.answers] * steps for i, name in enumerate(columns)}
        return Dataset.from_dict({"prompt": self.world.prompts * steps} | answers)


def ends_of(model: PreTrainedModel, tokenizer: Any) -> frozenset[int]:
    """All that the tokenizer and the configuration of ``generate`` name."""
    named = model.generation_config.eos_token_id
    return frozenset([tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])])


def load(world: World) -> PreTrainedModel:
    """The model as it is in its folder, float32."""
    return AutoModelForCausalLM.from_pretrained(world.model, dtype=torch.float32)
