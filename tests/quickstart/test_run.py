"""The whole story, shortened: warm-up, alignment, table; and, slowly, that the shipped one is worth telling."""

import json
import re
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI

from lit_align.cli.trainer import run_trainer
from lit_align.quickstart.run import quickstart
from lit_align.quickstart.world import write_world
from lit_align.types import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
SHORTER = {"prompts_per_rollout: 800": "prompts_per_rollout: 480", "max_epochs: 18": "max_epochs: 1"}


class Stopped(Exception):
    """Instead of a run."""


class Runs:
    """`run_trainer`, with a memory of what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Sequence[str]] = []

    def __call__(self, arguments: Sequence[str]) -> LightningCLI:
        self.asked.append(arguments)
        return run_trainer(arguments)

    def algorithms(self) -> list[str]:
        return [Path(arguments[1]).stem for arguments in self.asked]


def stop(arguments: Sequence[str]) -> Any:
    raise Stopped(*arguments)


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A clone of the project with a small world and a warm-up of 15 steps."""
    for file in CONFIGS.rglob("*.yaml"):
        copy = tmp_path / "configs" / file.relative_to(CONFIGS)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy)
    warm_up = tmp_path / "configs" / "quickstart_warmup.yaml"
    text = warm_up.read_text(encoding="utf-8")
    for long, short in SHORTER.items():
        assert long in text
        text = text.replace(long, short)
    warm_up.write_text(text, encoding="utf-8")
    small = partial(write_world, demonstration_count=480, prompt_count=80, eval_prompt_count=24)
    monkeypatch.setattr("lit_align.quickstart.run.write_world", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "runs" / "quickstart"


def rows(said: str) -> dict[str, list[str]]:
    """The table by the names of its rows: before, after."""
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in said.splitlines() if "│" in line]
    return {row[0]: row[1:] for row in cells}


def test_the_story_is_told_to_its_end(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = Runs()
    quickstart(["--rollouts", "2"], runs)
    said = capsys.readouterr().out
    summary = json.loads((clone / "summary.json").read_text(encoding="utf-8"))
    assert runs.algorithms() == ["sft", "dar_anchored"]
    assert [part for part in ("1/3", "2/3", "3/3") if part in said] == ["1/3", "2/3", "3/3"]
    assert "DAR after 2 rollouts, 24 held-out letters, seed 0" in said

    found = rows(said)
    assert found["gold score (judges)"] == [f"{value:.2f}" for value in summary["gold"]]
    assert found["proxy score (trains)"] == [f"{value:.2f}" for value in summary["proxy"]]
    assert all(0 < float(tokens) <= 64 for tokens in found["response length, tokens"])
    assert found["responses that end by themselves"] == [f"{value:.0%}" for value in summary["finished"]]
    assert found["KL to the reference, nats"] == ["0.00", f"{summary['kl_reference']:.2f}"]
    low, rate, high = (f"{value:.0%}" for value in summary["win_rate"])
    assert found["win rate against before, by gold"] == ["50%", f"{rate} ({low} to {high})"]
    assert 0 <= summary["win_rate"][0] <= summary["win_rate"][1] <= summary["win_rate"][2] <= 1
    assert re.fullmatch(r"\d+%", found["effective sample size of weights"][1])
    assert found["labels used"] == ["", "256"]  # 2 rollouts x 32 letters x 4 answers

    assert len(re.findall(r"^Letter ", said, re.M)) == 3
    assert len(re.findall(r"^  before  gold [+-]\d", said, re.M)) == len(re.findall(r"^  after   gold [+-]\d", said, re.M)) == 3
    letters = [json.loads(line)["prompt"] for line in (clone / "world" / "eval_prompts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all(" ".join(letter.split()) in " ".join(said.split()) for letter in letters[:3])
    for command in (
        "tensorboard --logdir runs",
        "lit-align quickstart --seed 1",
        "configs/algorithm/dar.yaml --config configs/quickstart.yaml",
        "make quickstart-rlaif",
    ):
        assert command in said

    assert {path.name for path in clone.iterdir()} == {"aligned", "initial", "policy", "seed", "summary.json", "warm-up", "world"}
    assert (clone / "aligned" / "checkpoints" / "last.ckpt").is_file()
    weights = [torch.load(clone / name / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for name in ("warm-up", "aligned")]
    name = "policy.model.model.norm.weight"
    assert not torch.equal(weights[0][name], weights[1][name])
    assert (clone / "aligned" / "policy" / "config.json").is_file()

    kept = (clone / "policy" / "model.safetensors").read_bytes()
    quickstart(["--rollouts", "2"], runs)
    again = capsys.readouterr().out
    assert runs.algorithms()[2:] == ["dar_anchored"], "the warm-up is not done twice"
    assert f"The warmed-up policy is in {Path('runs/quickstart/policy')} already." in again
    assert json.loads((clone / "summary.json").read_text(encoding="utf-8")) == summary, "the same seed tells the same story"
    assert rows(again) == found
    assert (clone / "policy" / "model.safetensors").read_bytes() == kept

    with pytest.raises(Stopped) as stopped:
        quickstart(["--seed", "1"], stop)
    assert "--config=configs/algorithm/sft.yaml" in stopped.value.args, "another seed has its own warm-up"
    assert "--seed_everything=1" in stopped.value.args
    assert not (clone / "policy").exists(), "and nothing of the first"


def test_the_shipped_length_is_that_of_the_file(clone: Path) -> None:
    (clone / "policy").mkdir(parents=True)
    (clone / "policy" / "config.json").touch()
    (clone / "seed").write_text("7", encoding="utf-8")
    with pytest.raises(Stopped) as stopped:
        quickstart(["--seed=7"], stop)
    assert stopped.value.args == (
        "fit",
        "--config=configs/algorithm/dar_anchored.yaml",
        "--config=configs/quickstart.yaml",
        f"--run={Path('runs/quickstart/aligned')}",
        "--seed_everything=7",
    )
    with pytest.raises(Stopped) as stopped:
        quickstart(["--seed=7", "--rollouts=3"], stop)
    assert stopped.value.args[-1] == "--trainer.max_epochs=3"


def test_an_interrupted_warm_up_is_begun_again(clone: Path) -> None:
    with pytest.raises(Stopped):
        quickstart([], stop)
    assert (clone / "initial" / "config.json").is_file()
    with pytest.raises(Stopped) as stopped:
        quickstart([], stop)
    assert "--config=configs/algorithm/sft.yaml" in stopped.value.args


def test_outside_a_clone_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UserError, match=rf"reads configs/quickstart\.yaml of a clone of the project, but this is {re.escape(str(tmp_path))}"
    ):
        quickstart([], stop)


def test_help_needs_no_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit_:
        quickstart(["--help"], stop)
    assert exit_.value.code == 0
    assert "--rollouts" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shipped_quickstart_aligns(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(CONFIGS)
    monkeypatch.chdir(tmp_path)
    quickstart(["--seed", str(seed)], run_trainer)
    summary = json.loads((tmp_path / "runs" / "quickstart" / "summary.json").read_text(encoding="utf-8"))
    low, rate, _ = summary["win_rate"]
    assert summary["seed"] == seed
    assert rate > 0.75
    assert low > 0.5
    assert 0.5 < summary["kl_reference"] < 6
    assert summary["finished"][1] > 0.95
    assert summary["gold"][1] > summary["gold"][0] + 1
    assert summary["proxy"][1] > summary["proxy"][0]
