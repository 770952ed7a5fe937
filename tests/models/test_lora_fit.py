"""Training through an adapter: it learns, it resumes to the bit, and bfloat16 and checkpointing go with it."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from lit_align.algorithms import GroupWeights, ReferenceStd, leave_one_out
from lit_align.models import CausalPolicy, LoRA
from tests.tiny import adamw, make_dar, write_tiny
from tests.wheel.harness import Fit, differing, fit

DATA = {"micro_batch_prompts": 2, "inner_epochs": 2, "chunk_prompts": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("model"), dropout=0.2)


def dar(model: str, policy: CausalPolicy | None = None, lr: float = 1e-2):
    options = {"alpha": 0.1, "beta": 0.1, "baseline": leave_one_out, "scale": ReferenceStd(), "weighting": GroupWeights()}
    module = make_dar(model, optimizer=adamw(lr), **options)
    module.policy = policy or CausalPolicy(model, lora=LoRA(rank=4, alpha=8.0, dropout=0.2))
    return module


def run(root: Path, model: str, policy: CausalPolicy | None = None, **options) -> Fit:
    options["trainer"] = {"max_epochs": 3, "accumulate_grad_batches": 2} | options.get("trainer", {})
    torch.manual_seed(0)  # the first factors of the adapter
    return fit(root, model, module=dar(model, policy), **(DATA | options))


@dataclass
class Saves(Callback):
    """A checkpoint after every micro-batch of the second rollout."""

    folder: Path
    steps: dict[str, int] = field(default_factory=dict)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.current_epoch == 1:
            trainer.save_checkpoint(self.folder / f"{batch_idx}.ckpt")


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory) -> tuple[Fit, Path]:
    folder = tmp_path_factory.mktemp("whole")
    return run(folder / "run", model, callbacks=[Saves(folder)]), folder


def test_checkpoints_on_disk_hold_the_adapter_and_its_moments(whole, model):
    content = torch.load(whole[1] / "3.ckpt", weights_only=False)
    weights = {name for name in content["state_dict"] if name.startswith("policy.")}
    assert weights == {f"policy.{name}" for name, _ in whole[0].module.policy.named_parameters() if "lora_" in name}
    assert len(content["optimizer_states"][0]["state"]) == len(weights)


@pytest.mark.parametrize("after", [0, 1, 4, 7])
def test_resumed_to_the_bit_with_dropout(after, whole, model, tmp_path):
    torch.manual_seed(99)  # the adapter that is made now is another one: all of it has to come from the checkpoint
    policy = CausalPolicy(model, lora=LoRA(rank=4, alpha=8.0, dropout=0.2))
    assert differing(dict(policy.state_dict()), dict(whole[0].module.policy.state_dict())) != []
    resumed = run(tmp_path, model, policy, ckpt_path=whole[1] / f"{after}.ckpt")
    assert differing(whole[0].state, resumed.state) == []
    assert resumed.recorder.losses == whole[0].recorder.losses[-len(resumed.recorder.losses) :]
    assert torch.equal(resumed.recorder.batches[-1].reference_logps, whole[0].recorder.batches[-1].reference_logps)


def test_the_model_below_never_moves(whole, model):
    plain = dict(CausalPolicy(model).model.named_parameters())
    trained = dict(whole[0].module.policy.model.named_parameters())
    for name, tensor in plain.items():
        left, _, right = name.rpartition(".")
        assert torch.equal(tensor, trained.get(name, trained.get(f"{left}.base_layer.{right}")))
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in trained.items())


def test_the_first_rollout_is_the_references(whole):
    first, last = whole[0].recorder.batches[0], whole[0].recorder.batches[-1]
    gaps = [(b.sampling_logps - b.reference_logps).where(b.response_mask, 0.0).abs().max() for b in (first, last)]
    assert gaps[0] < 1e-5  # read once with a cache and once without
    assert gaps[1] > 1e-2


@pytest.mark.parametrize("checkpointing", [False, True])
def test_dar_raises_the_reward(checkpointing, tmp_path_factory, tmp_path):
    model = write_tiny(tmp_path_factory.mktemp("quiet"))
    torch.manual_seed(0)
    policy = CausalPolicy(model, lora=LoRA(rank=4, alpha=8.0), gradient_checkpointing=checkpointing)
    result = fit(tmp_path, model, module=dar(model, policy, 3e-2), trainer={"max_epochs": 12}, prompts_per_rollout=16)
    rewards = [float(annotation.scores.mean()) for annotation in result.recorder.annotations]
    assert sum(rewards[-3:]) / 3 > rewards[0] + 0.2


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_bfloat16_runs_and_begins_at_the_reference(precision, model, tmp_path):
    policy = CausalPolicy(model, dtype="bfloat16", lora=LoRA(rank=4, alpha=8.0, dropout=0.2), gradient_checkpointing=True)
    result = run(tmp_path, model, policy, trainer={"precision": precision, "max_epochs": 2})
    first = result.recorder.batches[0]
    assert torch.equal(first.sampling_logps.where(first.response_mask, 0.0), first.reference_logps)
    assert all(torch.tensor(result.recorder.losses).isfinite())
    assert {p.dtype for p in result.module.policy.parameters() if p.requires_grad} == {torch.float32}
    assert any("lora_B" in name and tensor.abs().max() > 0 for name, tensor in policy.named_parameters())
