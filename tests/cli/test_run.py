"""The command line, run in this process: composing files, one folder, resuming, evaluating."""

import json
import os
from pathlib import Path

import pytest
import torch

from lit_align.cli import main
from tests.data.test_lock import another_process
from tests.tiny import PROMPTS, write_prompts, write_tiny

CONFIGS = Path(__file__).parents[2] / "configs"
ANNOTATOR = "def score(prompt, responses):\n    return [sum(letter in 'aei' for letter in text) for text in responses]\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a user has: a model, prompts, an annotator."""
    write_tiny(tmp_path / "my-model")
    write_prompts(tmp_path / "prompts.jsonl")
    write_prompts(tmp_path / "eval_prompts.jsonl", PROMPTS[:4])
    (tmp_path / "my_annotator.py").write_text(ANNOTATOR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "my_annotator", raising=False)
    return tmp_path


def lit_align(command: str, run: str, *more: str, algorithm: str = "dar_anchored", callbacks: bool = False) -> None:
    """One command with the shipped files and small numbers."""
    files = [f"algorithm/{algorithm}.yaml", "experiment/local.yaml", "annotator/function.yaml"] + (
        ["callbacks/default.yaml"] if callbacks else []
    )
    arguments = [argument for file in files for argument in ("--config", str(CONFIGS / file))]
    small = {
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "3",
        "trainer.accumulate_grad_batches": "1",
        "trainer.enable_model_summary": "false",
        "data.init_args.prompts_per_rollout": "8",
        "data.init_args.micro_batch_prompts": "4",
        "data.init_args.sampler.init_args.max_new_tokens": "6",
        "model.init_args.optimizer.init_args.lr": "0.01",
    }
    if not callbacks:
        small["trainer.enable_progress_bar"] = "false"
    main([command, *arguments, *(f"--{key}={value}" for key, value in small.items()), "--run", run, *more])


def weights(run: str) -> dict[str, torch.Tensor]:
    """The policy in the last checkpoint."""
    return torch.load(Path(run) / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]


def test_a_run_is_one_folder(folder: Path) -> None:
    lit_align("fit", "runs/a", callbacks=True)
    found = {path.name.split(".")[0] if "tfevents" in path.name else path.name for path in (folder / "runs" / "a").iterdir()}
    assert found == {"checkpoints", "config.yaml", "events", "hparams.yaml", "journal", "lock", "samples"}
    assert sorted(set(os.listdir(folder)) - {"__pycache__"}) == [
        "eval_prompts.jsonl",
        "my-model",
        "my_annotator.py",
        "prompts.jsonl",
        "runs",
    ]
    labels = (folder / "runs" / "a" / "journal" / "labels-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(labels) == 3 * 8


def test_resuming_the_last_checkpoint_continues_as_if_never_stopped(folder: Path) -> None:
    lit_align("fit", "runs/straight", "--trainer.max_epochs=4")
    lit_align("fit", "runs/stopped", "--trainer.max_epochs=2")  # a stop between the checkpoints of every tenth rollout
    first = weights("runs/stopped")
    lit_align("fit", "runs/stopped", "--trainer.max_epochs=4", "--ckpt_path=last")
    resumed, straight = weights("runs/stopped"), weights("runs/straight")
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert any(not torch.equal(first[name], straight[name]) for name in straight)
    journal = (folder / "runs" / "stopped" / "journal" / "labels-0.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(journal) == 4 * 8  # nothing was asked twice


def test_resuming_nothing_is_an_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        lit_align("fit", "runs/none", "--ckpt_path=last")
    assert exit_.value.code == 2
    error = capsys.readouterr().err
    assert "There is nothing to resume: runs/none/checkpoints/last.ckpt does not exist." in error
    assert "Traceback" not in error


def test_a_second_run_in_the_same_folder_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lit_align("fit", "runs/a", "--trainer.max_epochs=1")
    with pytest.raises(SystemExit):
        lit_align("fit", "runs/a", "--trainer.max_epochs=1")
    assert "runs/a already holds a run. Resume it with --ckpt_path last, or choose another folder with --run." in capsys.readouterr().err


def test_a_live_run_is_not_resumed_by_another_process(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lit_align("fit", "runs/a", "--trainer.max_epochs=1")
    before = {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()}
    with another_process(folder / "runs" / "a"):
        for more in (["--ckpt_path=last"], []):
            with pytest.raises(SystemExit):
                lit_align("fit", "runs/a", "--trainer.max_epochs=2", *more)
            assert "A run that is still alive works in runs/a: a second one would mix" in capsys.readouterr().err
        lit_align("check", "runs/a")  # looks only
    assert {path: path.read_bytes() for path in (folder / "runs").rglob("*") if path.is_file()} == before
    lit_align("fit", "runs/a", "--trainer.max_epochs=2", "--ckpt_path=last")


def test_validate_test_and_predict_use_the_checkpoint(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = ["--data.init_args.eval_prompts=JsonlPrompts", "--data.init_args.eval_prompts.init_args.path=eval_prompts.jsonl"]
    judge = ["--data.init_args.eval_annotator=FunctionAnnotator", "--data.init_args.eval_annotator.init_args.function=my_annotator.score"]
    lit_align("fit", "runs/a", *held_out, *judge)
    config = (folder / "runs" / "a" / "config.yaml").read_text(encoding="utf-8")
    capsys.readouterr()
    lit_align("validate", "runs/a", "--ckpt_path=last", *held_out, *judge)
    trained = capsys.readouterr().out
    lit_align("validate", "runs/a", *held_out, *judge)
    untrained = capsys.readouterr().out
    assert "val/reward" in trained
    assert "val/kl_reference" in trained
    assert trained != untrained
    lit_align("test", "runs/a", "--ckpt_path=last", *held_out, *judge)
    assert "test/reward" in capsys.readouterr().out
    lit_align("predict", "runs/a", "--ckpt_path=last", *held_out, *judge)
    rows = [json.loads(line) for line in (folder / "runs" / "a" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS[:4]
    assert set(rows[0]) == {"id", "prompt", "responses", "logps", "finished", "scores"}
    assert rows[0]["scores"] == [sum(letter in "aei" for letter in rows[0]["responses"][0])]
    assert (folder / "runs" / "a" / "config.yaml").read_text(encoding="utf-8") == config  # the fit's, not the evaluation's


def test_the_seed_reaches_the_data(folder: Path) -> None:
    lit_align("fit", "runs/a", "--trainer.max_epochs=1", "--seed_everything=3")
    lit_align("fit", "runs/b", "--trainer.max_epochs=1", "--seed_everything=4")
    lit_align("fit", "runs/c", "--trainer.max_epochs=1", "--seed_everything=3")
    a, b, c = (weights(f"runs/{name}") for name in "abc")
    assert all(torch.equal(a[name], c[name]) for name in a)
    assert any(not torch.equal(a[name], b[name]) for name in a)
    import yaml

    assert yaml.safe_load((folder / "runs" / "b" / "config.yaml").read_text(encoding="utf-8"))["seed_everything"] == 4


def test_precision_clipping_accumulation_and_a_schedule_come_from_the_trainer(folder: Path) -> None:
    schedule = ["--model.init_args.lr_schedule=torch.optim.lr_scheduler.LinearLR", "--model.init_args.lr_schedule.init_args.total_iters=4"]
    more = ["--trainer.precision=bf16-mixed", "--trainer.gradient_clip_val=0.5", "--trainer.accumulate_grad_batches=2"]
    lit_align("fit", "runs/a", "--data.init_args.inner_epochs=2", *more, *schedule)
    checkpoint = torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3 * 2
    assert checkpoint["lr_schedulers"][0]["last_epoch"] == 3 * 2  # per optimizer step, not per rollout


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (["--model.init_args.policy.init_args.path=nowhere"], "policy: no model at 'nowhere'"),
        (["--data.init_args.prompts.init_args.path=missing.jsonl"], "missing.jsonl"),
        (["--data.init_args.responses_per_prompt=1"], "needs at least 2 of them, got responses_per_prompt = 1"),
        (["--model.init_args.alpha=0", "--model.init_args.beta=0"], "alpha + beta must be positive"),
        (["--data.init_args.prompts_per_rollout=7"], "prompts_per_rollout should be a multiple of 4"),
        (["--trainer.reload_dataloaders_every_n_epochs=0"], "set trainer.reload_dataloaders_every_n_epochs to 1"),
        (["--data.init_args.sampler.init_args.max_new_tokens=64"], "No room for a prompt"),
    ],
)
def test_a_users_mistake_is_one_message(damage: list[str], message: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        lit_align("fit", "runs/a", *damage)
    error = capsys.readouterr().err
    assert exit_.value.code == 2
    assert message in error
    assert "Traceback" not in error


def test_help_and_version_need_no_framework(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    assert "quickstart" in capsys.readouterr().out
    main(["--version"])
    assert capsys.readouterr().out.startswith("lit-align ")
