"""`make quickstart-rlaif`, line by line as the Makefile has it: in miniature, and slowly in its real size."""

import csv
import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_align.cli import main
from lit_align.cli.trainer import run_trainer
from lit_align.quickstart.model import make_initial_policy
from lit_align.quickstart.ratings import tired_rating
from lit_align.quickstart.rules import gold_score
from lit_align.quickstart.run import quickstart
from lit_align.quickstart.world import write_world
from lit_align.types import Prompt

ROOT = Path(__file__).parents[2]
RUNS = Path("runs/quickstart-rlaif")
NAMES = ("answers", "held-out", "reward", "export", "aligned")
SMALLER = {
    "reward": ("--data.init_args.prompts_per_rollout=16", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1"),
    "aligned": ("--data.init_args.prompts_per_rollout=8", "--data.init_args.micro_batch_prompts=8", "--trainer.max_epochs=2"),
}


def links() -> dict[str, list[str]]:
    """The arguments of every `lit-align` after the quickstart's own, by what each makes."""
    dry_run = ["make", "--dry-run", "--assume-old=.venv/.ready", "BIN=", "quickstart-rlaif"]
    said = subprocess.run(dry_run, cwd=ROOT, capture_output=True, text=True, check=True).stdout.replace("\\\n", " ")
    commands = [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("/lit-align ")]
    return dict(zip(NAMES, commands, strict=True))


def run(more: Mapping[str, Sequence[str]], seed: int) -> None:
    """All of them, one after the other."""
    for name, arguments in links().items():
        ours = [] if name == "export" else [f"--seed_everything={seed}", "--config=configs/logger/csv.yaml"]
        main([*arguments, *ours, *more.get(name, ())])


def logged(name: str, metric: str) -> list[float]:
    """What a run logged of a metric, in order."""
    with (RUNS / name / "csv" / "version_0" / "metrics.csv").open(encoding="utf-8") as file:
        return [float(row[metric]) for row in csv.DictReader(file) if row.get(metric)]


def predicted(name: str) -> list[tuple[Prompt, list[str], list[float]]]:
    """Letters, answers and labels that a link wrote."""
    rows = [json.loads(line) for line in (RUNS / name / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(Prompt(id=i, content=row["prompt"]), row["responses"], row["scores"]) for i, row in enumerate(rows)]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)


def test_a_reward_model_learns_from_ratings_and_the_policy_from_the_reward_model(clone: None) -> None:
    world = Path("runs/quickstart")
    write_world(world / "world", 0, demonstration_count=48, prompt_count=16, eval_prompt_count=8)
    rows = [json.loads(line) for line in (world / "world" / "demonstrations.jsonl").read_text(encoding="utf-8").splitlines()]
    make_initial_policy(world / "policy", (row["prompt"] + row["response"] for row in rows), 0)
    run(SMALLER, seed=0)

    for name, rule, letters in (("answers", tired_rating, 16), ("held-out", gold_score, 8)):
        found = predicted(name)
        assert len(found) == letters
        for prompt, answers, labels in found:
            assert len(answers) == 4
            assert labels == pytest.approx(rule(prompt, answers), abs=1e-5)
    assert {p.content for p, *_ in predicted("answers")}.isdisjoint(p.content for p, *_ in predicted("held-out"))

    assert len(logged("reward", "val/accuracy")) == 2
    assert len(logged("aligned", "judge/win_rate")) >= 1
    warm = load_file(world / "policy" / "model.safetensors")
    name = "model.norm.weight"
    aligned = torch.load(RUNS / "aligned" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"][f"policy.model.{name}"]
    assert not torch.equal(aligned, warm[name]), "the policy has moved"
    exported = load_file(RUNS / "reward" / "export" / "model.safetensors")[name]
    assert not torch.equal(exported, warm[name]), "and so has what began as it"
    said = yaml.safe_load((RUNS / "aligned" / "config.yaml").read_text(encoding="utf-8"))["data"]["init_args"]["annotator"]
    assert said["class_path"].endswith("RewardModelAnnotator")
    assert Path(said["init_args"]["path"]) == RUNS / "reward" / "export"


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_the_shipped_chain_aligns_without_a_look_at_the_gold_rule(seed: int, clone: None) -> None:
    quickstart(["--seed", str(seed), "--rollouts", "1"], run_trainer)
    run({}, seed)
    assert logged("reward", "val/accuracy")[-1] > 0.75
    assert logged("aligned", "judge/win_rate")[-1] > 0.75
    assert logged("aligned", "judge/win_rate_low")[-1] > 0.5
    assert logged("aligned", "judge/score")[-1] > logged("aligned", "judge/reference_score")[-1] + 1
    assert 0.5 < logged("aligned", "judge/kl_reference")[-1] < 8
