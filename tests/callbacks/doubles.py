"""A rollout written by hand, someone to tell of it, and a fit that remembers what was logged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from torch import Tensor

from lit_align.types import AlignmentBatch, Annotation, Prompt, RolloutCallback, Rollouts
from tests.tiny import make_dar, make_data, make_trainer


@dataclass
class Module:
    """What a callback asks of the algorithm, on one process."""

    logged: dict[str, float] = field(default_factory=dict)
    device: str = "cpu"

    def log_rollout(self, metrics: dict[str, float]) -> None:
        assert not self.logged.keys() & metrics.keys(), "logged twice"
        self.logged |= {name: float(value) for name, value in metrics.items()}

    def all_gather(self, value: Tensor) -> Tensor:
        return value


def make_stage(folder: Path, rollout: int = 12) -> Any:
    """A Trainer's public face, without a logger."""
    return SimpleNamespace(
        current_epoch=rollout,
        loggers=[],
        is_global_zero=True,
        global_rank=0,
        default_root_dir=str(folder),
        callback_metrics={},
        should_stop=False,
    )


def make_rollout(
    scores: Tensor,
    valid: Tensor | None = None,
    *,
    logps: Tensor | None = None,
    reference: Tensor | None = None,
    loss_mask: Tensor | None = None,
    weights: Tensor | None = None,
    texts: Sequence[Sequence[str]] | None = None,
    prompts: Sequence[Any] | None = None,
) -> tuple[Rollouts, Annotation, AlignmentBatch]:
    """Two tokens per response unless ``logps`` [B, K, T] says otherwise; every other response is finished."""
    b, k = scores.shape
    logps = -torch.ones(b, k, 2) if logps is None else logps
    mask = torch.ones_like(logps, dtype=torch.bool)
    valid = torch.ones(b, k, dtype=torch.bool) if valid is None else valid
    rollouts = Rollouts(
        prompts=tuple(Prompt(i, content) for i, content in enumerate(prompts or [f"p{i}" for i in range(b)])),
        occurrences=torch.zeros(b, dtype=torch.long),
        prompt_tokens=torch.zeros(b, 1, dtype=torch.long),
        prompt_mask=torch.ones(b, 1, dtype=torch.bool),
        response_tokens=torch.zeros(logps.shape, dtype=torch.long),
        response_mask=mask,
        loss_mask=mask if loss_mask is None else loss_mask,
        sampling_logps=logps,
        finished=(torch.arange(b * k) % 2 == 0).view(b, k),
        texts=tuple(map(tuple, texts or [[f"r{i}{j}" for j in range(k)] for i in range(b)])),
        policy_version=12,
    )
    annotation = Annotation(scores=scores, valid=valid)
    batch = AlignmentBatch.of(rollouts, annotation)
    fields = {name: getattr(batch, name) for name in AlignmentBatch.__dataclass_fields__}
    return rollouts, annotation, AlignmentBatch(**(fields | {"reference_logps": reference, "weights": weights}))


@dataclass
class Notes(Callback):
    """Weights at the beginning and after every epoch."""

    weights: list[dict[str, Tensor]] = field(default_factory=list)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(copy_of(pl_module.policy))

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.weights.append(copy_of(pl_module.policy))


class History(Logger):
    """A logger that keeps everything: name to {x: value}."""

    name, version = "history", 0

    def __init__(self) -> None:
        super().__init__()
        self.curves: dict[str, dict[int, float]] = {}

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        for name, value in metrics.items():
            self.curves.setdefault(name, {})[step or 0] = float(value)

    def log_hyperparams(self, params: Any) -> None: ...


def fit(root: Path, model: str, callbacks: Sequence[Callback | RolloutCallback], **options: Any) -> tuple[Any, Any]:
    """Train DAR on the tiny world; the Trainer, and the curves that were logged."""
    module, data = options.pop("module", None) or make_dar(model), options.pop("data", None) or make_data()
    ckpt_path, history = options.pop("ckpt_path", None), History()
    trainer = make_trainer(root, **({"callbacks": list(callbacks), "logger": history, "limit_val_batches": 0} | options))
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, history.curves


def copy_of(policy: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in policy.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
