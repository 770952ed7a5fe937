"""What tables of many runs share: one run from files and options, and a file of results that no run is repeated for."""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning import Trainer

from lit_align.cli.trainer import run_trainer

BARE: dict[str, Any] = {  # a Trainer that rolls out and trains, and does nothing beside
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
    "reload_dataloaders_every_n_epochs": 1,
    "use_distributed_sampler": False,
}


def fit(folder: Path, files: Sequence[str], options: Mapping[str, object]) -> Trainer:
    """``lit-align fit`` in this process, in an empty ``folder``; the Trainer as it ended."""
    shutil.rmtree(folder, ignore_errors=True)
    options = {"trainer.enable_checkpointing": "false", **options, "run": folder}
    return run_trainer(["fit", *(f"--config={file}" for file in files), *(f"--{name}={value}" for name, value in options.items())]).trainer


def result_of(file: Path, key: Mapping[str, Any], run: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    """The line of ``file`` that has all of ``key``; if there is none, ``run`` makes it and it is appended."""
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        if (result := json.loads(line)) and all(result.get(name) == value for name, value in key.items()):
            return result
    made = {**key, **run()}
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as results:
        results.write(json.dumps(made) + "\n")
    return made


def settings_text(settings: Mapping[str, object]) -> str:
    """For a column of a table."""
    return ", ".join(f"{name.removeprefix('optimizer.init_args.')} {value}" for name, value in settings.items())


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))
