"""The same rollout given to TRL's trainers: token ids, scores and weights are ours, everything after that is theirs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from datasets import Dataset
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

from lit_align.types import Annotation, Rollouts
from tests.peer.ours import LONGEST, Run


@dataclass(frozen=True)
class Result:
    """Loss and gradient of one step on one batch, advantages ``[B, K]`` in our order of rows, and what was logged."""

    loss: float
    gradient: dict[str, Tensor]
    advantages: Tensor | None
    metrics: dict[str, float]


@final
class Peer:
    """A rollout of ours for TRL to train on. None of its trainers samples; the rest of them is as it is.

    Args:
        root: where trainers may write.
        folder: the model as it was: the reference.
        run: whose tokens, scores and weights these are.
        step: at the weights before which optimizer step.
        scores: others than those of ``run``, ``[B, K]``.
        padding: further columns of padding on the right.
    """

    def __init__(self, root: Path, folder: str, run: Run, step: int = 0, scores: Tensor | None = None, padding: int = 0) -> None:
        self.root, self.folder, self.weights, self.padding = root, folder, run.steps[step].weights, padding
        self.rollouts: Rollouts = run.rollouts
        self.annotation: Annotation = run.annotation
        self.scores = run.annotation.scores if scores is None else scores
        self.old_logps = run.rollouts.sampling_logps if step else None
        self.size, self.k = self.scores.shape
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def rloo(self, **options: Any) -> Result:
        """``RLOOTrainer``."""
        config = RLOOConfig(**self._group_options("rloo"), **options)
        trainer = RLOOTrainer(
            model=self._model(), reward_funcs=self._score, args=config, train_dataset=self._questions(), processing_class=self.tokenizer
        )
        trainer._generate = lambda prompts: (self._prompts(), self._responses(), [""] * len(prompts))
        return self._policy_gradient(trainer)

    def grpo(self, **options: Any) -> Result:
        """``GRPOTrainer``, which takes tokens from a ``rollout_func``."""
        config = GRPOConfig(**self._group_options("grpo"), **options)

        def rollout(prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, Any]:
            return {"prompt_ids": self._prompts(), "completion_ids": self._responses(), "logprobs": None}

        trainer = GRPOTrainer(
            model=self._model(),
            reward_funcs=self._score,
            args=config,
            train_dataset=self._questions(),
            processing_class=self.tokenizer,
            rollout_func=rollout,
        )
        return self._policy_gradient(trainer)

    def online_dpo(self, **options: Any) -> Result:
        """``OnlineDPOTrainer``, for K = 2."""
        config = OnlineDPOConfig(**self._options("online_dpo", self.size), max_length=2048, **options)
        trainer = OnlineDPOTrainer(
            model=self._model(),
            ref_model=self._reference(),
            reward_funcs=lambda **_: self._listed(self.scores.T, self.annotation.valid.T),
            args=config,
            train_dataset=self._questions(),
            processing_class=self.tokenizer,
        )
        columns = [self._column(k) for k in range(2)]  # all first responses, then all second ones
        trainer._generate = lambda *_: (*(torch.cat(parts) for parts in zip(*columns, strict=True)), None)
        trainer.optimizer = trainer.create_optimizer()
        loss = trainer.training_step(trainer.model, {"prompt": [""] * self.size})
        return Result(float(loss), gradient(trainer.model), None, {name: value[-1] for name, value in trainer.stats.items() if value})

    def dpo(self, **options: Any) -> Result:
        """``DPOTrainer`` on fixed pairs: of two responses the one with the higher score is chosen."""
        trainer = DPOTrainer(
            model=self._model(),
            ref_model=self._reference(),
            args=DPOConfig(**self._options("dpo", self.size), max_length=None, **options),
            train_dataset=Dataset.from_dict({"prompt": ["a"], "chosen": ["a"], "rejected": ["b"]}),
            processing_class=self.tokenizer,
        )
        prompts, responses = self._prompts()[:: self.k], self._responses()
        rows = []
        for b, scores in enumerate(self.scores.tolist()):
            chosen, rejected = (responses[b * self.k + pick(range(self.k), key=scores.__getitem__)] for pick in (max, min))
            rows.append({"prompt_ids": prompts[b], "chosen_ids": chosen, "rejected_ids": rejected})
        loss = trainer._compute_loss(trainer.model, trainer.data_collator(rows), return_outputs=False)
        loss.backward()
        return Result(float(loss.detach()), gradient(trainer.model), None, {})

    def _policy_gradient(self, trainer: Any) -> Result:
        """Without ``_prepare_inputs``, which shuffles rows, and without the loop, which would set the number of micro-batches."""
        trainer.current_gradient_accumulation_steps = 1
        inputs = trainer._generate_and_score_completions([{"prompt": ""}] * (self.size * self.k))
        if self.old_logps is not None:
            inputs["old_per_token_logps"] = self.old_logps.flatten(0, 1)
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
        return Result(float(loss.detach()), gradient(trainer.model), inputs["advantages"].view(self.size, self.k), metrics)

    def _options(self, name: str, rows: int) -> dict[str, Any]:
        return {
            "output_dir": str(self.root / name),
            "per_device_train_batch_size": rows,
            "bf16": False,
            "gradient_checkpointing": False,
            "use_cpu": True,
            "report_to": "none",
            "disable_dropout": True,
        }

    def _group_options(self, name: str) -> dict[str, Any]:
        return self._options(name, self.size * self.k) | {"num_generations": self.k, "max_completion_length": LONGEST}

    def _model(self) -> Any:
        model = self._reference()
        model.load_state_dict(self.weights)
        return model.train()

    def _reference(self) -> Any:
        return AutoModelForCausalLM.from_pretrained(self.folder)

    def _questions(self) -> Dataset:
        return Dataset.from_dict({"prompt": [str(prompt.content) for prompt in self.rollouts.prompts]})

    def _prompts(self) -> list[list[int]]:
        """Ids of the prompt of every response."""
        kept = zip(self.rollouts.prompt_tokens, self.rollouts.prompt_mask, strict=True)
        return [tokens[mask].tolist() for tokens, mask in kept for _ in range(self.k)]

    def _responses(self) -> list[list[int]]:
        kept = zip(self.rollouts.response_tokens.flatten(0, 1), self.rollouts.response_mask.flatten(0, 1), strict=True)
        return [tokens[mask].tolist() for tokens, mask in kept]

    def _column(self, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Tokens and mask of the prompts and of everybody's response number ``k``."""
        r = self.rollouts
        tokens, mask = (torch.nn.functional.pad(x[:, k], (0, self.padding)) for x in (r.response_tokens, r.response_mask.long()))
        return r.prompt_tokens, r.prompt_mask.long(), tokens, mask

    def _score(self, **_: Any) -> list[float | None]:
        return self._listed(self.scores, self.annotation.valid)

    def _listed(self, scores: Tensor, valid: Tensor) -> list[float | None]:
        """What a reward function of theirs returns: None where there is no score."""
        return [score if ok else None for score, ok in zip(scores.flatten().tolist(), valid.flatten().tolist(), strict=True)]


def gradient(model: Any) -> dict[str, Tensor]:
    """By the parameter's name."""
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
