"""The shipped files of annotators, put on top of a local run."""

import sys
from pathlib import Path

import pytest
import torch

from lit_align.cli import main
from tests.annotators.test_reward_model import write_reward_model
from tests.annotators.worlds import PAIRWISE, SCORING, make_tokenizer, write_judge
from tests.tiny import write_prompts, write_tiny

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", ["reward_model", "scoring_judge", "pairwise_judge"])
def test_a_run_with_one_more_file(name, tmp_path, monkeypatch):
    write_tiny(tmp_path / "my-model")
    write_prompts(tmp_path / "prompts.jsonl")
    write_reward_model(tmp_path / "my-reward-model")
    write_judge(tmp_path / "my-judge", make_tokenizer())
    (tmp_path / "mine.yaml").write_text(SCORING if name == "scoring_judge" else PAIRWISE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    files = ("algorithm/dar_anchored.yaml", "experiment/local.yaml", f"annotator/{name}.yaml")
    small = {
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "1",
        "trainer.accumulate_grad_batches": "1",
        "trainer.enable_model_summary": "false",
        "trainer.enable_progress_bar": "false",
        "data.init_args.prompts_per_rollout": "4",
        "data.init_args.micro_batch_prompts": "4",
        "data.init_args.sampler.init_args.max_new_tokens": "6",
        "run": "runs/a",
    }
    judging = (
        []
        if name == "reward_model"
        else ["--data.init_args.annotator.init_args.template=mine.yaml", "--data.init_args.annotator.init_args.min_mass=0"]
    )
    main(["fit", *(x for f in files for x in ("--config", str(CONFIGS / f))), *(f"--{k}={v}" for k, v in small.items()), *judging])
    assert len((tmp_path / "runs/a/journal/labels-0.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    assert torch.load("runs/a/checkpoints/last.ckpt", weights_only=True)["epoch"] == 1
