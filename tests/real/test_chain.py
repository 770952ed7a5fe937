"""The classical chain on a real policy, every line of `make chain-stories` in miniature: `make test-real`."""

import csv
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from benchmarks.stories import prepare
from lit_align.cli import main

ROOT = Path(__file__).parents[2]
LOG = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.name=", "--trainer.logger.version="]
SMALLER = {  # what is less than in the target, by link
    "sft": ["--trainer.max_epochs=4", *LOG],
    "answers": ["--data.init_args.eval_prompts.init_args.max_prompts=64"],
    "reward": ["--trainer.max_epochs=4", "--data.init_args.prompts_per_rollout=64", *LOG],
    "ppo": [
        "--trainer.max_epochs=6",
        "--trainer.callbacks.every_n_rollouts=6",
        "--trainer.callbacks.prompts.max_prompts=32",
        *LOG,
    ],
}

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
    pytest.mark.filterwarnings("default"),
]


def links() -> list[list[str]]:
    """What `make chain-stories` gives to `lit-align`, files by their whole path."""
    said = subprocess.run(
        ["make", "--dry-run", "READY=", "BIN=bin", "chain-stories"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    lines = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("bin/lit-align ")]
    return [[str(ROOT / word) if word.startswith("configs/") else word for word in line] for line in lines]


def column(link: str, metric: str) -> list[float]:
    """A metric of a run, oldest first."""
    with Path(f"runs/chain-stories/{link}/metrics.csv").open(encoding="utf-8") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def test_every_link_is_run_and_the_reward_that_was_learnt_rises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prepare(Path(os.environ["LIT_ALIGN_DATA"]), Path("runs/stories-world"))
    for line in links():
        main([*line, *([] if line[0] == "export" else SMALLER[Path(line[-1]).name])])
    imitated, ordered, reward = column("sft", "train/loss"), column("reward", "pairs/accuracy"), column("ppo", "reward/mean")
    print(imitated, ordered, reward, column("ppo", "judge/score"), column("ppo", "judge/kl_reference"))
    assert imitated[-1] < imitated[0]
    assert sum(ordered[-4:]) / 4 > 0.55
    assert reward[-1] > reward[0]
    assert len(column("ppo", "judge/win_rate")) == 2
