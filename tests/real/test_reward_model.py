"""A reward model of people's ratings, which then annotates: `make test-real`."""

import csv
import hashlib
import json
import os
import random
from pathlib import Path

import pytest

from lit_align.cli import main

CONFIGS = Path(__file__).parents[2] / "configs"
EPOCHS, LONGEST = 16, 80  # epochs of 10 optimizer steps, characters
APART = 1.5  # on a scale from -4 to 4, each rating the mean of twenty people's

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
    pytest.mark.filterwarnings("default"),
]


def held_out(text: str) -> bool:
    """One text in five, whatever it is compared with."""
    return hashlib.sha256(text.encode()).digest()[0] < 51


def write_pairs(path: Path, rows: list[dict], count: int) -> None:
    """Two texts of one kind whose ratings are clearly apart, as responses to an empty prompt."""
    draw, lines = random.Random(0), []
    kinds = [[row for row in rows if row["source"] == kind] for kind in ("movie", "tweet")]
    while len(lines) < count:
        first, second = draw.sample(kinds[len(lines) % 2], 2)
        if abs(first["rating"] - second["rating"]) >= APART:
            both = {"responses": [first["text"], second["text"]], "scores": [first["rating"], second["rating"]]}
            lines.append(json.dumps({"prompt": "", **both}))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def last(run: str, metric: str) -> list[float]:
    with (Path("runs") / run / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def fit(run: str, *options: str) -> None:
    logger = ("--trainer.logger=lightning.pytorch.loggers.CSVLogger", "--trainer.logger.name=", "--trainer.logger.version=")
    main(["fit", f"--run=runs/{run}", "--trainer.accelerator=cpu", "--trainer.devices=1", *logger, *options])


def test_it_learns_what_people_find_positive_and_then_annotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = Path(os.environ["LIT_ALIGN_DATA"])
    rows = [json.loads(line) for line in (data / "sentiment_vader" / "dev.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row["text"]) <= LONGEST]
    write_pairs(Path("train.jsonl"), [row for row in rows if not held_out(row["text"])], 6400)
    write_pairs(Path("held_out.jsonl"), [row for row in rows if held_out(row["text"])], 400)
    fit(
        "reward",
        f"--config={CONFIGS / 'algorithm/reward_model.yaml'}",
        f"--config={CONFIGS / 'experiment/local_reward.yaml'}",
        f"--model.init_args.network.init_args.path={data.resolve() / 'stories260K'}",
        "--model.init_args.optimizer.init_args.lr=2e-3",
        "--data.init_args.prompts.init_args.path=train.jsonl",
        "--data.init_args.eval_prompts=lit_align.data.JsonlPrompts",
        "--data.init_args.eval_prompts.init_args.path=held_out.jsonl",
        "--data.init_args.max_response_tokens=80",
        "--data.init_args.micro_batch_prompts=32",
        "--trainer.accumulate_grad_batches=1",
        "--data.init_args.prompts_per_rollout=320",
        f"--trainer.max_epochs={EPOCHS}",
        f"--trainer.check_val_every_n_epoch={EPOCHS // 4}",
        "--trainer.callbacks+=callbacks.ReliabilityPlot",
    )
    accuracy, error = last("reward", "val/accuracy"), last("reward", "val/calibration_error")
    print("held-out accuracy", accuracy, "calibration error", error, "cut", last("reward", "response/cut")[-1])
    assert accuracy[-1] > 0.65
    assert error[-1] < 0.15

    main(["export", "runs/reward", "--output=reward-model"])
    Path("prompts.jsonl").write_text('{"prompt": "Once upon a time"}\n{"prompt": "Tom was"}\n' * 8, encoding="utf-8")
    fit(
        "policy",
        f"--config={CONFIGS / 'algorithm/rloo.yaml'}",
        f"--config={CONFIGS / 'experiment/local.yaml'}",
        f"--config={CONFIGS / 'annotator/reward_model.yaml'}",
        f"--model.init_args.policy.init_args.path={data.resolve() / 'stories260K'}",
        "--model.init_args.optimizer.class_path=torch.optim.AdamW",
        "--model.init_args.optimizer.init_args.lr=3e-4",
        "--data.init_args.annotator.init_args.path=reward-model",
        "--data.init_args.sampler.init_args.max_new_tokens=32",
        "--data.init_args.prompts_per_rollout=16",
        "--data.init_args.micro_batch_prompts=16",
        "--trainer.accumulate_grad_batches=1",
        "--trainer.max_epochs=10",
    )
    reward = last("policy", "reward/mean")
    print("reward of the policy", reward)
    assert reward[-1] > reward[0]
