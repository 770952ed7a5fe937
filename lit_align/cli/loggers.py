"""What loggers of other makers need: their packages, and the run that they are to go on with."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from lit_align.types import UserError

PACKAGES = {  # logger -> the module that it imports, and how to get it
    "WandbLogger": ("wandb", 'pip install "lit-align[wandb]"'),
    "MLFlowLogger": ("mlflow", "pip install mlflow"),
}


def require_packages(loggers: Any) -> None:
    """Refuse, before anything is built, a logger whose package is missing.

    Args:
        loggers: the parsed ``trainer.logger``: settings with a ``class_path``, several of them, a bool, or None.

    Raises:
        UserError: that says how to install it.
    """
    for logger in loggers if isinstance(loggers, Sequence) else [loggers]:
        name = "" if logger is None or isinstance(logger, bool) else logger.class_path.rpartition(".")[2]
        module, command = PACKAGES.get(name, ("", ""))
        if module and find_spec(module) is None:
            raise UserError(f"trainer.logger is a {name}, which needs the package {module}: {command}, or choose another logger.")


def without_folders(config: str) -> str:
    """A run's config without what ``--run`` sets in a list of loggers: the parser leaves that out of a single one only."""
    settings = yaml.safe_load(config)
    loggers = settings["trainer"]["logger"]
    if not isinstance(loggers, list):
        return config
    for logger in loggers:
        for name in ("save_dir", "id"):
            logger["init_args"].pop(name, None)
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def last_wandb_run(run: str) -> str | None:
    """The id of the W&B run in the folder ``run``, with which a resumed one goes on; None if there is none yet."""
    latest = Path(run) / "wandb" / "latest-run"  # a link to run-DATE-ID, or to offline-run-DATE-ID
    return latest.resolve().name.partition("run-")[2].partition("-")[2] if latest.exists() else None
