"""What a finished run left behind, read again: its config, and what it trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, final

import torch
import yaml
from jsonargparse import ArgumentParser

import lit_align.annotators
import lit_align.data
import lit_align.generation
import lit_align.models  # noqa: F401  (short names in YAML are those of imported classes)
from lit_align.algorithms import SteppingModule
from lit_align.cli.trainer import accept_final_classes
from lit_align.types import UserError

CONFIG, LAST = "config.yaml", Path("checkpoints") / "last.ckpt"
_T = TypeVar("_T")


@final
@dataclass(frozen=True, slots=True)
class Restored:
    """A run at a checkpoint, in eval mode on the CPU."""

    config: dict[str, Any]
    checkpoint: dict[str, Any]
    module: SteppingModule

    @property
    def rollouts(self) -> int:
        """How many it has been trained on, the one under way not counted."""
        return self.checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]


def check_run(run: Path, checkpoint: Path) -> None:
    """Refuse a folder that no run wrote, and a checkpoint that can't be read.

    Raises:
        UserError: if there is no config, or no checkpoint in one file.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} is no run: there is no {run / CONFIG}. Give the folder that fit wrote (its --run).")
    if checkpoint.is_dir():
        raise UserError(f"{checkpoint} is a sharded checkpoint. Gather it into one file with its strategy's own tool, then export that.")
    if not checkpoint.is_file():
        known = ", ".join(sorted(str(file) for file in (run / LAST.parent).glob("*.ckpt"))) or "none"
        raise UserError(f"There is no checkpoint {checkpoint}. Choose another one of the run; there are: {known}.")


def restore(run: Path, checkpoint_file: Path) -> Restored:
    """What `run` trained, as it was at a checkpoint; see `check_run`.

    Raises:
        UserError: if the checkpoint is not of this config.
    """
    config, checkpoint = run_config(run), torch.load(checkpoint_file, map_location="cpu", weights_only=True)
    module = built(SteppingModule, config["model"])
    try:
        module.load_state_dict(checkpoint["state_dict"], strict=module.strict_loading)
    except RuntimeError as error:
        raise UserError(f"{checkpoint_file} doesn't fit {run / CONFIG}: {str(error).splitlines()[-1].strip()}") from error
    module.text_model.eval()
    return Restored(config, checkpoint, module)


def run_config(run: Path) -> dict[str, Any]:
    """Every setting of the run."""
    return yaml.safe_load((run / CONFIG).read_text(encoding="utf-8"))


def built(base: type[_T], settings: Mapping[str, Any]) -> _T:
    """The object of a subclass of ``base`` that a part of a config, ``class_path`` and ``init_args``, describes."""
    accept_final_classes()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(base, "part")
    return parser.instantiate(parser.parse_object({"part": settings})).part


def refuse_existing(output: Path, *unfinished: str) -> None:
    """Refuse to write where something is.

    Raises:
        UserError: if ``output`` is a file, or a folder with something in it that is not ``unfinished``, as an interrupted command left it.
    """
    if output.exists() and any(found.name not in unfinished for found in (output.iterdir() if output.is_dir() else [output])):
        raise UserError(f"{output} exists already. Choose another folder with --output, or remove it.")
