"""Text, histograms, pictures, and numbers known outside of ``on_train_epoch_start``: to TensorBoard, or else to the run's folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from torch import Tensor


def log_now(trainer: Trainer, metrics: Mapping[str, float], rollouts: int) -> None:
    """Plot these, equal on all ranks, at x = ``rollouts``, and let EarlyStopping and ModelCheckpoint monitor them.

    For hooks at a rollout's end, whose numbers can't wait for `Aligner.log_rollout` to plot them when the next one starts.
    """
    for logger in trainer.loggers:
        logger.log_metrics(dict(metrics), step=rollouts)
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})


def log_text(trainer: Trainer, name: str, text: str, rollout: int) -> None:
    """Markdown of the first rank, to TensorBoard, or else to ``text/<name>/rollout-000012.md`` in the run's folder."""
    if trainer.is_global_zero:
        for board in (boards := _boards(trainer)):
            board.add_text(name, text, rollout)
        if not boards:
            _write(trainer, "text", name, rollout, "md", text)


def log_histogram(trainer: Trainer, name: str, values: Tensor, rollout: int) -> None:
    """The finite ones of the first rank's values, to TensorBoard, or else to ``histograms/<name>/rollout-000012.json`` in the
    run's folder, as ``counts`` between ``edges``. Nothing where there are none."""
    values = values.detach().float().cpu()
    values = values[values.isfinite()]
    if trainer.is_global_zero and len(values):
        for board in (boards := _boards(trainer)):
            board.add_histogram(name, values, rollout)
        if not boards:
            counts, edges = torch.histogram(values, bins=30)
            _write(trainer, "histograms", name, rollout, "json", json.dumps({"counts": counts.int().tolist(), "edges": edges.tolist()}))


def log_image(trainer: Trainer, name: str, image: Tensor, rollout: int) -> None:
    """A picture ``[3, height, width]`` of bytes, of the first rank, to TensorBoard, or else to ``images/<name>/rollout-000012.png`` in
    the run's folder."""
    if trainer.is_global_zero:
        for board in (boards := _boards(trainer)):
            board.add_image(name, image, rollout)
        if not boards:
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(_file(trainer, "images", name, rollout, "png"))


def _boards(trainer: Trainer) -> list[Any]:
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def _write(trainer: Trainer, kind: str, name: str, rollout: int, suffix: str, text: str) -> None:
    _file(trainer, kind, name, rollout, suffix).write_text(text, encoding="utf-8")


def _file(trainer: Trainer, kind: str, name: str, rollout: int, suffix: str) -> Path:
    """One file per rollout, so that a rollout repeated after a crash replaces its own."""
    file = Path(trainer.default_root_dir) / kind / name.replace("/", "-") / f"rollout-{rollout:06d}.{suffix}"
    file.parent.mkdir(parents=True, exist_ok=True)
    return file
