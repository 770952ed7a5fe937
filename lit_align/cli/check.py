"""``lit-align check``: everything that a fit will do, once, before hours and labels are spent on it."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import final

from lightning.pytorch import LightningModule, Trainer

from lit_align.cli.trainer import AlignmentCLI, run_trainer
from lit_align.data import MixedDataModule
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
        print("\n".join(_forecast(cli)))
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


def _forecast(cli: AlignmentCLI) -> list[str]:
    """Labels and prompts of the run as configured."""
    data, planned = cli.datamodule, cli.planned
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has been said
        lines = [f"Prompts: {data.pool_of(data.prompts, data.response_room).summary()}"]
    prompts, k, extra = planned["prompts_per_rollout"], planned.get("responses_per_prompt", 0), planned.get("max_extra_prompts", 0)
    if not k:
        return [*lines, "Labels: none, this algorithm samples nothing."]
    share, rollouts, each = planned.get("fresh_annotated", 1.0), planned["max_epochs"], (prompts + extra) * k
    if isinstance(data, MixedDataModule) and (passes := planned["fixed_passes"]) is not None:
        rollouts = data.rollouts_of(passes, prompts)
    if not share:
        return [*lines, "Labels: none, no row is annotated."]
    if rollouts is None or rollouts < 0:
        return [*lines, f"Labels: {'at most ' if extra else ''}{each:,} in every rollout, and no end: set trainer.max_epochs."]
    read = f"({prompts} + {extra} extra)" if extra else prompts
    if share < 1:
        labels, of_these = round(rollouts * each * share), f"of which a share of {share:g} is drawn and annotated"
        return [*lines, f"Labels: about {labels:,} ({rollouts:,} rollouts x {prompts} prompts x {k} responses, {of_these})."]
    return [*lines, f"Labels: at most {rollouts * each:,} ({rollouts:,} rollouts x {read} prompts x {k} responses)."]


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= LONGEST_TEXT else shown[: LONGEST_TEXT - 4] + "...'"
