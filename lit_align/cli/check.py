"""``lit-align check``: everything that a fit will do, once, before hours and labels are spent on it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import final

from lightning.pytorch import LightningModule, Trainer

from lit_align.cli.forecast import forecast
from lit_align.cli.trainer import run_trainer
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts, UserError

LONGEST_TEXT = 60


@final
class Rehearsal(RolloutCallback):
    """Keeps the one rollout of a rehearsal."""

    def __init__(self) -> None:
        self.rollouts: Rollouts | None = None
        self.annotation: Annotation | None = None

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Keep what was sampled and said."""
        self.rollouts, self.annotation = rollouts, annotation


def check(arguments: Sequence[str]) -> None:
    """One micro-batch is answered, annotated and trained on; then say what a fit with these arguments will ask for.

    The run's folder is left as it is; loggers and callbacks are made, and not used.

    Args:
        arguments: of ``fit``.

    Raises:
        UserError: of what ``fit`` would refuse, and if the step can't be taken.
    """
    started, rehearsal = perf_counter(), Rehearsal()
    with TemporaryDirectory() as folder, _quiet("lightning.pytorch", "lightning.fabric"):
        cli = run_trainer(["fit", *arguments, f"--run={folder}"], rehearsal)
        print("Config, files and model are fine.")
        _show(rehearsal)
        step = cli.trainer.callback_metrics
        if int(step["train/skipped_steps"]):
            raise UserError("The training step was not taken: its loss or its gradient is not finite, or no response had a valid score.")
        print(f"One training step was taken: loss {float(step['train/loss']):.4g}.")
        print("\n".join(forecast(cli, 0 if rehearsal.annotation is None else rehearsal.annotation.scores.numel())))
    print(f"Checked in {perf_counter() - started:.0f} s; nothing was kept.")


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Warnings only."""
    loggers = [
        logging.getLogger(name) for family in names for name in (family, f"{family}.utilities.rank_zero", f"{family}.utilities.seed")
    ]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.WARNING)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _show(rehearsal: Rehearsal) -> None:
    """One annotated prompt."""
    if rehearsal.rollouts is None or rehearsal.annotation is None:
        return
    prompt, scores, valid = rehearsal.rollouts.prompts[0], rehearsal.annotation.scores[0], rehearsal.annotation.valid[0]
    text = prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]
    asked = len(rehearsal.rollouts.prompts)
    print(f"{asked} prompt{'s were' if asked > 1 else ' was'} answered and annotated, the first of them: {_short(text)}")
    for response, score, ok in zip(rehearsal.rollouts.texts[0], scores.tolist(), valid.tolist(), strict=True):
        print(f"  {f'{score:8.3f}' if ok else ' invalid'}  {_short(response)}")
    rows = zip(rehearsal.annotation.scores, rehearsal.annotation.valid, strict=True)
    if len(scores) > 1 and rehearsal.annotation.valid.any() and all(len(row[ok].unique()) < 2 for row, ok in rows):
        print("  No prompt's responses got different scores: there is nothing to learn. Look at the annotator.")


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 4] + "...'"
