"""``fit``, ``validate``, ``test`` and ``predict``: LightningCLI in subclass mode, with what an online run needs."""

import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any, final

from filelock import FileLock
from jsonargparse import set_parsing_settings
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import StrategyRegistry
from lightning.pytorch.utilities import rank_zero_only
from transformers.utils import logging as transformers_logging

import lit_align.annotators
import lit_align.generation
import lit_align.models  # noqa: F401  (short names in YAML are those of imported classes)
from lit_align.algorithms import SteppingModule
from lit_align.cli.loggers import last_wandb_run, require_packages, without_folders
from lit_align.cli.mistakes import explained, refuse_linked
from lit_align.cli.predictions import PredictionWriter
from lit_align.cli.settings import did_you_mean
from lit_align.data import AlignmentDataModule
from lit_align.data.lock import lock_run
from lit_align.types import RolloutCallback, UserError

TRAINER_DEFAULTS = {
    "reload_dataloaders_every_n_epochs": 1,  # an epoch is a rollout
    "use_distributed_sampler": False,  # the data module gives every rank its own prompts
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
    "check_val_every_n_epoch": 10,
}
NOISE = (".*isinstance.treespec, LeafSpec.*", ".*LightningCLI's args parameter is intended.*", ".*instantiate_classes.. was deprecated.*")


REHEARSAL = {
    "logger": False,
    "num_nodes": 1,
    "max_epochs": 1,
    "max_steps": -1,
    "accumulate_grad_batches": 1,
    "limit_val_batches": 0,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
LINKS = {"data.init_args.seed": "seed_everything", "trainer.logger.init_args.save_dir": "run", "trainer.logger.init_args.id": "run"}


def run_trainer(arguments: Sequence[str], rehearsal: RolloutCallback | None = None) -> "AlignmentCLI":
    """Parse, build and run a subcommand; returns the finished command line with its ``trainer``, ``model`` and ``datamodule``.

    With a ``rehearsal`` a fit is one optimizer step on one micro-batch, on one device, watched by that callback alone.
    """
    transformers_logging.disable_progress_bar()
    accept_final_classes()
    for message in NOISE:
        warnings.filterwarnings("ignore", message=message)
    return AlignmentCLI(list(arguments), rehearsal)


def add_parts(parser: LightningArgumentParser) -> None:
    """What a run is made of, in the order in which a config is printed and kept: what a user chose before the Trainer's forty keys."""
    parser.add_lightning_class_args(SteppingModule, "model", subclass_mode=True)
    parser.add_lightning_class_args(AlignmentDataModule, "data", subclass_mode=True)
    parser.add_lightning_class_args(Trainer, "trainer")
    parser.set_defaults({f"trainer.{name}": value for name, value in TRAINER_DEFAULTS.items()})
    parser.add_argument("--seed_everything", type=bool | int, default=0, help="Seed of everything; true draws one.")
    parser.add_argument("--run", type=str, default="runs/unnamed", help="Folder of logs, checkpoints, labels and samples.")
    parser.add_argument("--checkpoint_every", type=int, default=10, help="Rollouts between checkpoints.")
    computed = {"data.init_args.seed": int, "trainer.logger.init_args.id": last_wandb_run}
    for target, origin in LINKS.items():
        parser.link_arguments(origin, target, compute_fn=computed.get(target))


@final
class FitConfig(SaveConfigCallback):
    """Keeps the config of a fit beside its checkpoints; an evaluation does not overwrite it."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save once, when fitting."""
        if stage == "fit":
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Into the run's folder, wherever loggers write."""
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        text = self.parser.dump(self.config, skip_none=False)
        (folder / self.config_filename).write_text(without_folders(text), encoding="utf-8")


@final
class AlignmentCLI(LightningCLI):
    """LightningCLI with one folder per run: logs, checkpoints, config, labels and samples.

    Args:
        arguments: the subcommand and its options.
        rehearsal: see `run_trainer`.
    """

    def __init__(self, arguments: list[str], rehearsal: RolloutCallback | None = None) -> None:
        self.rehearsal = rehearsal
        self.planned: dict[str, Any] = {}  # what a rehearsal changes
        self.lock: FileLock | None = None
        super().__init__(
            SteppingModule,
            AlignmentDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            save_config_callback=FitConfig if rehearsal is None else None,
            save_config_kwargs={"overwrite": True, "save_to_log_dir": False},
            parser_kwargs={"exit_on_error": False} | {command: {"exit_on_error": False} for command in self.subcommands()},
            args=arguments,
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Refuse what would be ignored; explain a mistake by its key and its place."""
        assert isinstance(args, list)
        command, *options = args
        refuse_linked(options, LINKS)
        try:
            super().parse_arguments(parser, args)
        except ArgumentError as error:
            raise explained(self._subcommand_parsers[command], options, str(error)) from None

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Nothing: the seed would come first."""

    def add_core_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """See `add_parts`."""
        add_parts(parser)

    def before_instantiate_classes(self) -> None:
        """Refuse to mix two runs in one folder, live or past, before anything heavy is loaded."""
        settings = self.config[self.command]
        require_packages(settings.trainer.logger)
        if self.rehearsal is not None:
            self._plan_rehearsal()
            return
        if settings.ckpt_path == "last" and not self.last_checkpoint.is_file():
            raise UserError(f"There is nothing to resume: {self.last_checkpoint} does not exist. Leave --ckpt_path out, or check --run.")
        if self.command != "fit":
            return
        if rank_zero_only.rank == 0:  # pyright: ignore[reportFunctionMemberAccess]
            self.lock = lock_run(self.folder)  # also of runs without a journal, and before a logger touches anything
        if settings.ckpt_path is None and self.last_checkpoint.is_file():
            raise UserError(f"{self.folder} already holds a run. Resume it with --ckpt_path last, or choose another folder with --run.")

    def instantiate_trainer(self, **overrides: Any) -> Trainer:
        """The Trainer with the run's folder as the one place for everything."""
        settings = self.config_init[self.command]
        if self.rehearsal is not None:
            devices = settings["trainer"]["devices"]
            one = {"devices": devices[:1] if isinstance(devices, list) else 1}
            return self._trainer_of(REHEARSAL | one | {"default_root_dir": str(self.folder), "callbacks": [self.rehearsal]})
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
        if self.command != "fit":
            overrides["logger"] = False  # what is found is printed, or written by predict; curves are of training
        elif settings["trainer"].get("logger") in (None, True):
            overrides["logger"] = TensorBoardLogger(str(self.folder.parent), name=self.folder.name, version="")
        else:
            self.folder.mkdir(parents=True, exist_ok=True)  # W&B goes to the system's temporary folder if it is missing
        return self._trainer_of(overrides)

    def after_instantiate_classes(self) -> None:
        """``--ckpt_path last`` is this run's last checkpoint, for every subcommand."""
        settings = self.config_init[self.command]
        if settings["ckpt_path"] == "last":
            settings["ckpt_path"] = str(self.last_checkpoint)

    def after_fit(self) -> None:
        """The end of the run is a checkpoint too, whatever ``checkpoint_every``."""
        if self.rehearsal is None and self.trainer.checkpoint_callback is not None:
            self.trainer.save_checkpoint(self.last_checkpoint)
        if self.lock is not None:
            self.lock.release()

    def _trainer_of(self, overrides: dict[str, Any]) -> Trainer:
        settings = self.config_init[self.command]["trainer"]
        try:
            return super().instantiate_trainer(**overrides)
        except (MisconfigurationException, ValueError) as error:
            known = {
                "strategy": ["auto", *StrategyRegistry.available_strategies()],
                "accelerator": ["auto", "gpu", *AcceleratorRegistry.available_accelerators()],
            }
            wrong = [(key, settings[key], names) for key, names in known.items() if isinstance(settings[key], str)]
            hints = [f"\ntrainer.{key} is {value!r}.{did_you_mean(value, names)}" for key, value, names in wrong if value not in names]
            raise UserError(f"The Trainer refuses its settings: {str(error).splitlines()[0]}{''.join(hints)}") from error

    def _plan_rehearsal(self) -> None:
        """One micro-batch is the whole rollout, and one step; remember what was planned."""
        settings = self.config[self.command]
        data = settings.data.init_args
        self.planned = data.as_dict() | {"max_epochs": settings.trainer.max_epochs}
        settings.ckpt_path = None
        if "micro_batch_prompts" in data:  # a user's own data module may have fixed it
            data.prompts_per_rollout, data.inner_epochs = data.micro_batch_prompts, 1
        for longer, off in (("max_extra_prompts", 0), ("fixed_passes", None)):
            if longer in data:
                data[longer] = off

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
def accept_final_classes() -> None:
    """jsonargparse takes a class marked ``@final`` for one that has no siblings; ours mark that nobody inherits from them."""
    set_parsing_settings(subclasses_enabled=["is_final_class"])
