"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI in subclass mode, with what an online run needs."""

import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

from jsonargparse import set_parsing_settings
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from transformers.utils import logging as transformers_logging

import lit_align.annotators
import lit_align.generation
import lit_align.models  # noqa: F401  (short names in YAML are those of imported classes)
from lit_align.algorithms import AlignmentModule
from lit_align.cli.predictions import PredictionWriter
from lit_align.data import AlignmentDataModule
from lit_align.types import UserError

TRAINER_DEFAULTS = {
    "reload_dataloaders_every_n_epochs": 1,  # an epoch is a rollout
    "use_distributed_sampler": False,  # the data module gives every rank its own prompts
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 10,
}
NOISE = (".*isinstance.treespec, LeafSpec.*", ".*LightningCLI's args parameter is intended.*", ".*instantiate_classes.. was deprecated.*")


def run_trainer(arguments: Sequence[str]) -> "AlignmentCLI":
    """Parse, build and run a subcommand; returns the finished command line with its ``trainer``, ``model`` and ``datamodule``."""
    transformers_logging.disable_progress_bar()
    _accept_final_classes()
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    return AlignmentCLI(
        AlignmentModule,
        AlignmentDataModule,
        subclass_mode_model=True,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=0,
        save_config_callback=FitConfig,
        save_config_kwargs={"overwrite": True},
        trainer_defaults=TRAINER_DEFAULTS,
        args=list(arguments),
    )


@final
class FitConfig(SaveConfigCallback):
    """Keeps the config of a fit beside its checkpoints; an evaluation does not overwrite it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save once, when fitting."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)


@final
class AlignmentCLI(LightningCLI):
    """LightningCLI with one folder per run: logs, checkpoints, config, labels and samples."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """``--run``, ``--checkpoint_every``, and one seed for everything."""
        parser.add_argument("--run", type=str, default="runs/unnamed", help="Folder of logs, checkpoints, labels and samples.")
        parser.add_argument("--checkpoint_every", type=int, default=10, help="Rollouts between checkpoints.")
        parser.link_arguments("seed_everything", "data.init_args.seed", compute_fn=int)

    def before_instantiate_classes(self) -> None:
        """Refuse to mix two runs in one folder, before anything heavy is loaded."""
        settings = self.config[self.command]
        if settings.ckpt_path == "last":
            if not self.last_checkpoint.is_file():
                raise UserError(
                    f"There is nothing to resume: {self.last_checkpoint} does not exist. Leave --ckpt_path out, or check --run."
                )
        elif self.command == "fit" and settings.ckpt_path is None and self.last_checkpoint.is_file():
            raise UserError(f"{self.folder} already holds a run. Resume it with --ckpt_path last, or choose another folder with --run.")

    def instantiate_trainer(self, **overrides: Any) -> Trainer:
        """The Trainer with the run's folder as the one place for everything."""
        settings = self.config_init[self.command]
        callbacks = list(settings["trainer"].get("callbacks") or [])
        if settings["trainer"].get("enable_checkpointing") is not False and not any(isinstance(c, ModelCheckpoint) for c in callbacks):
            callbacks.append(
                ModelCheckpoint(
                    self.folder / "checkpoints",
                    "rollout-{epoch:05d}",
                    auto_insert_metric_name=False,
                    every_n_epochs=settings["checkpoint_every"],
                    save_last=True,
                    save_on_train_epoch_end=True,
                )
            )
        if self.command == "predict":
            callbacks.append(PredictionWriter(self.folder / "predictions.jsonl"))
        overrides |= {"default_root_dir": str(self.folder), "callbacks": callbacks}
        if settings["trainer"].get("logger") in (None, True):
            fitting = self.command == "fit"
            overrides["logger"] = TensorBoardLogger(str(self.folder.parent), name=self.folder.name, version="") if fitting else False
        return super().instantiate_trainer(**overrides)

    def after_instantiate_classes(self) -> None:
        """``--ckpt_path last`` is this run's last checkpoint, for every subcommand."""
        settings = self.config_init[self.command]
        if settings["ckpt_path"] == "last":
            settings["ckpt_path"] = str(self.last_checkpoint)

    def after_fit(self) -> None:
        """The end of the run is a checkpoint too, whatever ``checkpoint_every``."""
        if self.trainer.checkpoint_callback is not None:
            self.trainer.save_checkpoint(self.last_checkpoint)

    @property
    def command(self) -> str:
        """The subcommand."""
        assert self.subcommand is not None
        return self.subcommand

    @property
    def folder(self) -> Path:
        """The run's."""
        return Path(self.config[self.command].run)

    @property
    def last_checkpoint(self) -> Path:
        """Where a resume begins."""
        return self.folder / "checkpoints" / "last.ckpt"


@cache
def _accept_final_classes() -> None:
    """jsonargparse takes a class marked ``@final`` for one that has no siblings; ours mark that nobody inherits from them."""
    set_parsing_settings(subclasses_enabled=["is_final_class"])
