"""The progress bar, with the part of a run that Lightning does not know of."""

import sys
from typing import final

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from lit_align.types import AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts


@final
class RolloutProgressBar(TQDMProgressBar, RolloutCallback):  # pyright: ignore[reportIncompatibleMethodOverride]
    """Lightning's progress bar that also shows the rollout phase: ``Rollout 3: sampled 64/128, annotated 32/128``.

    Responses are counted on the first rank. In a terminal the line makes way for the epoch's bar; in a file every update stays.

    Args:
        refresh_rate: show every so many micro-batches of training; 0 shows nothing, rollouts included.
        leave: whether an epoch's bar stays.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._rollout_bar: Tqdm | None = None
        self._rollout, self._responses = 0, 0

    def on_rollout_start(self, trainer: Trainer, module: LightningModule, rollout: int, total: int) -> None:
        """Open the bar; half of it is sampling, half annotating."""
        self._rollout, self._responses = rollout, total
        self._rollout_bar = Tqdm(
            desc=self._said(0, 0),
            total=2 * total,
            disable=self.is_disabled,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format="{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]",
        )

    def on_rollout_progress(self, trainer: Trainer, module: LightningModule, sampled: int, annotated: int) -> None:
        """Move it; further prompts make it longer."""
        if self._rollout_bar is not None and not self._rollout_bar.disable:
            self._responses = max(self._responses, sampled)
            self._rollout_bar.total = 2 * self._responses
            self._rollout_bar.n = sampled + annotated
            self._rollout_bar.set_description_str(self._said(sampled, annotated))

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Close it."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the line to the error."""
        self._close()

    def _close(self) -> None:
        if self._rollout_bar is not None:
            self._rollout_bar.close()
            self._rollout_bar = None

    def _said(self, sampled: int, annotated: int) -> str:
        return f"Rollout {self._rollout}: sampled {sampled}/{self._responses}, annotated {annotated}/{self._responses}"
