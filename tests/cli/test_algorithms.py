"""Every file under configs/algorithm/ trains two rollouts with the real command line, and each of them moves the policy."""

import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lit_align.cli import main
from tests.cli.shipped import CONFIGS
from tests.cli.test_configs import composed

FILES = sorted(path.relative_to(CONFIGS).as_posix() for path in (CONFIGS / "algorithm").glob("*.y*ml"))

SMALL = {  # what the published numbers are too large, or too small, for here; all else is the file's
    "trainer.accelerator": "cpu",
    "trainer.devices": "1",
    "trainer.accumulate_grad_batches": "2",
    "trainer.enable_model_summary": "false",
    "trainer.enable_progress_bar": "false",
    "data.init_args.prompts_per_rollout": "8",
    "data.init_args.micro_batch_prompts": "4",
    "model.init_args.optimizer.init_args.lr": "0.01",
}
SAMPLED = {"data.init_args.sampler.init_args.max_new_tokens": "6"}
FIXED = {"data.init_args.max_response_tokens": "6"}
MIXED = SAMPLED | FIXED | {"data.init_args.fixed_passes": "null"}
OF_DATA = {"OnlineDataModule": SAMPLED, "MixedDataModule": MIXED}
TRAINED = re.compile(r"(?:policy|network)\.model\.(.+)")
DEMONSTRATIONS = [{"prompt": prompt, "response": response} for prompt in "abcd" for response in ("ha", "jig")]


def small_data(file: str) -> dict[str, str]:
    """What is too large of a file's data."""
    said = yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8"))["data"]["class_path"]
    return OF_DATA.get(said.rpartition(".")[2], FIXED)


def after(run: Path, rollouts: int) -> dict[str, torch.Tensor]:
    """What is trained, in the last checkpoint, which is one of so many rollouts of which every step was taken."""
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = checkpoint["state_dict"]
    assert checkpoint["epoch"] == rollouts
    assert state["skipped_steps"] == 0
    assert all(value.isfinite().all() for value in state.values())
    return {found[1]: value for name, value in state.items() if (found := TRAINED.match(name))}


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_an_algorithm_trains_two_rollouts(file: str, world: Path) -> None:
    (world / "demonstrations.jsonl").write_text("".join(json.dumps(row) + "\n" for row in DEMONSTRATIONS), encoding="utf-8")
    configs = [f"--config={CONFIGS / part}" for part in composed(file)]
    small = [f"--{key}={value}" for key, value in (SMALL | small_data(file)).items()]
    fit = ["fit", *configs, *small, "--run=runs/a"]
    before = load_file(world / "my-model" / "model.safetensors")
    for rollouts, more in enumerate(([], ["--ckpt_path=last"]), start=1):
        main([*fit, f"--trainer.max_epochs={rollouts}", *more])
        state = after(world / "runs" / "a", rollouts)
        known = before.keys() & state.keys()  # a reward model has another head than the policy that it is made of
        assert len(known) >= len(before) - 1
        assert any(not torch.equal(before[name], state[name]) for name in known), f"rollout {rollouts} left the policy as it was"
        before = state
