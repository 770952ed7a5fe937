"""``lit-align`` with configs/strategy/ddp_cpu.yaml: two processes do together what one does."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiny import PROMPTS, write_prompts, write_tiny

CONFIGS = Path(__file__).parents[2] / "configs"
COMMAND = Path(sys.executable).with_name("lit-align")
SECONDS = 120
ANNOTATOR = "def score(prompt, responses):\n    return [sum(letter in 'aei' for letter in text) for text in responses]\n"
SMALL = """
model:
  init_args:
    alpha: 0.5
    beta: 1.5 # weights near 1: losses are a few nats, and 1e-5 of one is a lot
    optimizer: {class_path: torch.optim.AdamW, init_args: {lr: 3.0e-3, weight_decay: 0.0}}
data:
  init_args:
    sampler: {class_path: lit_align.generation.CacheSampler, init_args: {max_new_tokens: 8}}
    prompts_per_rollout: 8
    micro_batch_prompts: 2
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 3
  accumulate_grad_batches: 2
  enable_progress_bar: false
  enable_model_summary: false
  logger: {class_path: lightning.pytorch.loggers.CSVLogger, init_args: {name: "", version: ""}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    write_tiny(folder / "my-model")
    write_prompts(folder / "prompts.jsonl")
    write_prompts(folder / "eval_prompts.jsonl", PROMPTS[:7])  # 4 and 3 for two ranks
    (folder / "my_annotator.py").write_text(ANNOTATOR, encoding="utf-8")
    for name in ("one", "two"):
        (folder / f"{name}.yaml").write_text(SMALL, encoding="utf-8")
    return folder


def lit_align(folder: Path, command: str, name: str, *more: str) -> str:
    """Run the installed command; it starts its own ranks. What it said."""
    shipped = ["algorithm/dar_anchored.yaml", "experiment/local.yaml", "data/jsonl.yaml", "annotator/function.yaml"]
    files = [*(CONFIGS / file for file in shipped), f"{name}.yaml", *([CONFIGS / "strategy" / "ddp_cpu.yaml"] if name == "two" else [])]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONFAULTHANDLER": "1"}
    arguments = [str(COMMAND), command, *(f"--config={file}" for file in files), f"--run=runs/{name}", *more]
    process = subprocess.Popen(
        arguments, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)  # the second rank is a child of the first
            process.wait()
    assert process.returncode == 0, said[-4000:]
    return said


@pytest.fixture(scope="module")
def fitted(folder: Path) -> Path:
    """One process takes steps of 2 x 2 prompts, two take the same steps as 2 x 1 x 2."""
    lit_align(folder, "fit", "one")
    lit_align(folder, "fit", "two", "--trainer.accumulate_grad_batches=1")
    return folder / "runs"


def labels(run: Path) -> set[str]:
    """Every label of a run, whoever wrote it."""
    rows = [json.loads(line) for file in (run / "journal").iterdir() for line in file.read_text(encoding="utf-8").splitlines()]
    found = {json.dumps(row, sort_keys=True) for row in rows}
    assert len(found) == len(rows) == 3 * 8, "no label is asked for twice"
    return found


def curve(run: Path, name: str) -> list[float]:
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get(name)]
    return [float(row[name]) for row in rows]


@pytest.mark.slow
def test_the_labels_of_two_processes_are_those_of_one(fitted: Path) -> None:
    assert sorted(file.name for file in (fitted / "two" / "journal").iterdir()) == ["labels-0.jsonl", "labels-1.jsonl"]
    assert labels(fitted / "two") == labels(fitted / "one")


@pytest.mark.slow
def test_so_are_the_losses(fitted: Path) -> None:
    one, two = (curve(fitted / name, "train/loss") for name in ("one", "two"))
    assert len(one) == len(two) == 6
    assert two[:5] == pytest.approx(one[:5], abs=1e-5, rel=0)
    assert max(one) - min(one) > 0.1
    assert curve(fitted / "two", "reward/mean") == pytest.approx(curve(fitted / "one", "reward/mean"), abs=1e-6)
    assert curve(fitted / "two", "labels/used") == [32.0, 64.0, 96.0]


@pytest.mark.slow
def test_two_processes_answer_every_held_out_prompt_once(fitted: Path) -> None:
    said = lit_align(fitted.parent, "predict", "two", "--trainer.accumulate_grad_batches=1", "--ckpt_path=last")
    files = sorted((fitted / "two").glob("predictions*.jsonl"))
    assert [file.name for file in files] == ["predictions.1.jsonl", "predictions.jsonl"]
    assert all(file.name in said for file in files)
    rows = [[json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files]
    assert [len(part) for part in rows] == [3, 4]
    assert sorted(row["prompt"] for part in rows for row in part) == sorted(PROMPTS[:7])
