"""What ``lit-align predict`` leaves behind."""

import json
from pathlib import Path
from typing import Any, final

from lightning.pytorch import Callback, LightningModule, Trainer


@final
class PredictionWriter(Callback):
    """Writes the rows of ``predict_step`` as JSONL; every rank but the first adds its number to the file's name.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin an empty file."""
        if trainer.global_rank:
            self.path = self.path.with_suffix(f".{trainer.global_rank}.jsonl")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("", encoding="utf-8")

    def on_predict_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Append one batch."""
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in outputs)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where it is."""
        print(f"Answers are in {self.path}.")
