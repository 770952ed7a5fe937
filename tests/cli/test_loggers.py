"""Every logger writes into the run's folder, and a resumed run has its place on the same x-axes."""

import csv
import json
import os
import struct
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_align.cli import main
from lit_align.cli.loggers import last_wandb_run, require_packages
from lit_align.types import UserError
from tests.cli.shipped import CONFIGS, OWN

Curves = dict[str, dict[int, float]]
METRICS = ("reward/mean", "train/loss")


def of_tensorboard(folder: Path) -> Curves:
    events = EventAccumulator(str(folder)).Reload()
    return {name: {event.step: event.value for event in events.Scalars(name)} for name in METRICS}


def of_csv(folder: Path) -> Curves:
    found: Curves = {name: {} for name in METRICS}
    for file in sorted((folder / "csv").rglob("metrics.csv")):
        with file.open(encoding="utf-8", newline="") as opened:
            for row in csv.DictReader(opened):
                for name in METRICS:
                    if row.get(name):
                        found[name][int(row["step"])] = float(row[name])
    return found


def records(file: Path) -> Iterator[bytes]:
    """What is in a log of LevelDB's format: blocks of 32 kB, the first one after 7 bytes of header, in which every part of a record
    has a checksum, its length, and whether it is the whole (1), the beginning (2), in between (3) or the end (4)."""
    content, place, parts = file.read_bytes(), 7, b""
    assert content.startswith(b":W&B")
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        length, kind = struct.unpack_from("<HB", content, place + 4)
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


def of_wandb(folder: Path) -> Curves:
    """Read back from the files that offline mode leaves for ``wandb sync``."""
    from wandb.proto.wandb_internal_pb2 import Record

    found: Curves = {name: {} for name in METRICS}
    files = sorted((folder / "wandb").glob("offline-run-*/run-*.wandb"), key=lambda file: file.parent.name)
    assert len(files) == 2
    assert len({file.name for file in files}) == 1, "the resumed run is the same W&B run"
    for file in files:
        deadline, axes, read = time.monotonic() + 60, set(), []
        while not any(record.HasField("exit") for record in read):  # another process writes the file, and ends it in its own time
            assert time.monotonic() < deadline, f"{file} has no end"
            time.sleep(0.1)
            read = [Record.FromString(data) for data in records(file)]
        for record in read:
            if record.HasField("metric"):
                axes.add((record.metric.glob_name, record.metric.step_metric))
            row = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
            for name in METRICS:
                if name in row:
                    found[name][row["trainer/global_step"]] = row[name]
        assert ("*", "trainer/global_step") in axes, "this is the x-axis of everything"
    return found


@pytest.mark.parametrize(
    ("logger", "read"),
    [
        (None, of_tensorboard),
        ("tensorboard", of_tensorboard),
        ("csv", of_csv),
        pytest.param("wandb", of_wandb, marks=pytest.mark.skipif(find_spec("wandb") is None, reason="wandb is not installed")),
    ],
)
def test_a_run_and_its_resumption_are_in_one_folder(logger: str | None, read: Any, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    before = set(os.listdir(world))
    file = [f"--config={CONFIGS / 'logger' / f'{logger}.yaml'}"] if logger else []
    main(["fit", *OWN, *file, "--trainer.max_epochs=2", "--run=runs/a"])
    if logger == "wandb":
        __import__("wandb").finish()  # as the end of the process does
    main(["fit", "--config=runs/a/config.yaml", "--trainer.max_epochs=3", "--ckpt_path=last"])
    if logger == "wandb":
        __import__("wandb").finish()
    assert set(os.listdir(world)) - before - {"__pycache__"} == {"runs"}
    assert os.listdir(world / "runs") == ["a"]
    assert (world / "runs" / "a" / "config.yaml").is_file()
    assert (world / "runs" / "a" / "checkpoints" / "last.ckpt").is_file()
    curves = read(world / "runs" / "a")
    assert list(curves["reward/mean"]) == [0, 1, 2], "over rollouts"
    assert list(curves["train/loss"]) == [0, 1, 2, 3, 4, 5], "over optimizer steps"
    assert all(0 < value < 6 for value in curves["reward/mean"].values())


def test_several_loggers_share_the_folder_and_an_evaluation_has_none(world: Path) -> None:
    several = "[{class_path: CSVLogger, init_args: {name: csv}}, {class_path: TensorBoardLogger, init_args: {name: '', version: ''}}]"
    (world / "loggers.yaml").write_text(f"trainer:\n  logger: {several}\n", encoding="utf-8")
    main(["fit", *OWN, "--config=loggers.yaml", "--trainer.max_epochs=1", "--run=runs/a"])
    run = world / "runs" / "a"
    main(["fit", "--config=runs/a/config.yaml", "--trainer.max_epochs=2", "--ckpt_path=last"])
    assert list(of_csv(run)["reward/mean"]) == [0, 1]
    assert of_csv(run)["reward/mean"] == pytest.approx(of_tensorboard(run)["reward/mean"])
    before = {path for path in world.rglob("*") if "__pycache__" not in path.parts}
    held_out = ["--data.init_args.eval_prompts=JsonlPrompts", "--data.init_args.eval_prompts.init_args.path=eval_prompts.jsonl"]
    main(["validate", "--config=runs/a/config.yaml", *held_out, "--ckpt_path=last"])
    assert {path for path in world.rglob("*") if "__pycache__" not in path.parts} == before


@pytest.mark.parametrize("where", ["the command line", "a list"])
def test_a_folder_of_its_own_is_refused(where: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "logger.yaml").write_text(
        "trainer:\n  logger:\n  - class_path: CSVLogger\n    init_args: {save_dir: logs}\n", encoding="utf-8"
    )
    given = {"the command line": ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"], "a list": ["--config=logger.yaml"]}
    with pytest.raises(SystemExit):
        main(["fit", *OWN, *given[where], "--trainer.max_epochs=1"])
    assert "is set by run: what you give it would be ignored.\nRemove it, and set run: logs (--run=logs)." in capsys.readouterr().err


@pytest.mark.parametrize(("logger", "package"), [("WandbLogger", "wandb"), ("MLFlowLogger", "mlflow")])
def test_a_missing_package_is_named(
    logger: str, package: str, world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_align.cli.loggers.find_spec", lambda name: None)
    with pytest.raises(SystemExit):
        main(["fit", *OWN, f"--config={CONFIGS / 'logger' / f'{package}.yaml'}"])
    assert f"lit-align: trainer.logger is a {logger}, which needs the package {package}: pip install " in capsys.readouterr().err


def test_what_needs_no_package_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_align.cli.loggers.find_spec", lambda name: None)

    class Settings:
        class_path = "lightning.pytorch.loggers.CSVLogger"

    for loggers in (None, True, False, Settings(), [Settings(), Settings()]):
        require_packages(loggers)
    Settings.class_path = "lightning.pytorch.loggers.WandbLogger"
    with pytest.raises(UserError, match="needs the package wandb"):
        require_packages([Settings()])


@pytest.mark.parametrize("name", ["run-20260102_030405-ab-1", "offline-run-20260102_030405-ab-1"])
def test_the_last_run_is_that_of_the_link(name: str, tmp_path: Path) -> None:
    assert last_wandb_run(str(tmp_path)) is None
    (tmp_path / "wandb" / name).mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(name)
    assert last_wandb_run(str(tmp_path)) == "ab-1"
