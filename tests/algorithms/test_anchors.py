"""References that move: when, to where, and that a resumed run has the same one."""

import inspect
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lit_align import algorithms
from lit_align.algorithms import DAR, DPO, AlignmentModule, Anchor, GroupWeights, Initial, MovingAverage, PreviousRound, leave_one_out
from lit_align.models import CausalPolicy, FrozenReference, LoRA, MovingReference
from lit_align.types import RolloutCallback, UserError
from tests.tiny import adamw, write_tiny
from tests.wheel.harness import Fit, Killed, differing, fit

DATA: dict[str, Any] = {"micro_batch_prompts": 4, "inner_epochs": 2}  # 4 optimizer steps per rollout
LORA = LoRA(rank=4, alpha=8.0, dropout=0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("anchors"), dropout=0.2)


def make(model: str, anchor: Anchor, **options: Any) -> DPO:
    torch.manual_seed(0)  # the first factors of an adapter
    return DPO(CausalPolicy(model, **options), anchor=anchor, optimizer=adamw())


def run(root: Path, model: str, module: AlignmentModule, epochs: int = 5, **options: Any) -> Fit:
    trainer = {"max_epochs": epochs} | options.pop("trainer", {})
    return fit(root, model, module=module, trainer=trainer, **(DATA | options))


# The schedule


def test_when_the_reference_moves() -> None:
    assert [PreviousRound(1).share(n) for n in range(1, 4)] == [1.0, 1.0, 1.0]
    assert [PreviousRound(3).share(n) for n in range(1, 8)] == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert [MovingAverage(0.9).share(n) for n in range(1, 4)] == pytest.approx([0.1] * 3)
    assert not Initial.moves
    assert PreviousRound.moves
    assert MovingAverage.moves


@pytest.mark.parametrize(("make_anchor", "wrong"), [(PreviousRound, 0), (MovingAverage, 0.0), (MovingAverage, 1.0), (MovingAverage, 1.5)])
def test_numbers_out_of_range_are_refused(make_anchor: Any, wrong: float) -> None:
    with pytest.raises(UserError, match=rf"got {wrong}\..*`anchor: Initial`"):
        make_anchor(wrong)


def of_reference() -> list[type[AlignmentModule]]:
    """Every algorithm that asks for a reference as it stands."""
    classes = [c for name in algorithms.__all__ if inspect.isclass(c := getattr(algorithms, name)) and issubclass(c, AlignmentModule)]
    return [c for c in classes if not inspect.isabstract(c) and c(Bare()).needs.reference]  # pyright: ignore[reportCallIssue]


class Bare(nn.Module):
    """As much of a policy as a constructor reads."""

    reference_offload = False
    value_head = nn.Identity()  # or PPO would make a critic of its folder

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))


def test_every_algorithm_with_a_reference_takes_an_anchor() -> None:
    found = of_reference()
    assert len(found) >= 12
    for algorithm in found:
        assert algorithm(Bare()).anchor == Initial(), algorithm  # pyright: ignore[reportCallIssue]
        module = algorithm(Bare(), anchor=PreviousRound(7))  # pyright: ignore[reportCallIssue]
        assert module.anchor == PreviousRound(7), algorithm
        assert "reference_weights.weight" in module.state_dict()


# Where it is


@dataclass
class Moments(RolloutCallback):
    """The trained weights at the start of every rollout, and the reference's after every micro-batch."""

    policy: list[dict[str, Tensor]] = field(default_factory=list)
    reference: list[tuple[int, dict[str, Tensor]]] = field(default_factory=list)

    def on_rollout_start(self, trainer: Trainer, module: Any, rollout: int, total: int) -> None:
        self.policy.append({name: p.detach().clone() for name, p in module.policy.named_parameters() if p.requires_grad})

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.reference.append((trainer.current_epoch, reference_weights(pl_module)))


def reference_weights(module: LightningModule) -> dict[str, Tensor]:
    state, prefix = module.state_dict(), "reference_weights."
    return {name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix) and "rollout" not in name}


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize(("n", "since"), [(1, [0, 1, 2, 3]), (2, [0, 0, 2, 2])])
def test_it_says_what_the_policy_said_at_the_start_of_the_round(
    n: int, since: list[int], lora: LoRA | None, model: str, tmp_path: Path
) -> None:
    moments = Moments()
    result = run(tmp_path, model, make(model, PreviousRound(n), lora=lora), epochs=4, callbacks=[moments])
    for rollout, batch in enumerate(result.recorder.batches):
        then = CausalPolicy(model, lora=lora)
        then.layouts = result.module.policy.layouts  # which round alike
        with torch.no_grad():
            for name, p in then.named_parameters():
                p.copy_(moments.policy[since[rollout]].get(name, p))
        expected = torch.cat([padded(FrozenReference(then).token_logps(batch.rows(r)), batch) for r in torch.arange(8).split(4)])
        assert batch.reference_logps is not None
        assert torch.equal(batch.reference_logps, expected), rollout
    first, last = result.recorder.batches[0], result.recorder.batches[-1]
    assert (first.sampling_response_logps - first.reference_response_logps).abs().max() < 1e-4
    initial = result.module.policy.make_reference()
    assert not torch.allclose(initial.token_logps(last), last.reference_logps, atol=0.1)  # pyright: ignore[reportArgumentType]


def padded(logps: Tensor, batch: Any) -> Tensor:
    return nn.functional.pad(logps, (0, batch.response_mask.shape[-1] - logps.shape[-1]))


@pytest.mark.parametrize("lora", [None, LORA])
def test_an_average_follows_and_only_between_rollouts(lora: LoRA | None, model: str, tmp_path: Path) -> None:
    moments = Moments()
    result = run(tmp_path, model, make(model, MovingAverage(0.75), lora=lora), callbacks=[moments])
    assert len(moments.reference) == 5 * 4
    expected = moments.policy[0]
    for rollout, policy in enumerate(moments.policy):
        if rollout:
            expected = {name: 0.75 * expected[name] + 0.25 * value for name, value in policy.items()}
        for epoch, found in moments.reference:
            if epoch == rollout:
                assert found.keys() == expected.keys()
                for name, value in found.items():
                    torch.testing.assert_close(value, expected[name], atol=1e-6, rtol=0)
    assert isinstance(result.module.reference, MovingReference)


def test_with_the_sampling_policy_as_its_reference_dar_is_advantage_weighted_regression(model: str, tmp_path: Path) -> None:
    """The ratio to the reference, and with it the split of the price, drops out of every rollout."""

    def dar(alpha: float) -> DAR:
        parts: dict[str, Any] = {"baseline": leave_one_out, "weighting": GroupWeights(), "optimizer": adamw()}
        return DAR(CausalPolicy(model), alpha=alpha, beta=0.5 - alpha, anchor=PreviousRound(1), **parts)

    one, other = (run(tmp_path / str(alpha), model, dar(alpha), epochs=3) for alpha in (0.4, 0.1))
    for a, b in zip(one.recorder.batches, other.recorder.batches, strict=True):
        assert a.weights is not None
        assert b.weights is not None
        torch.testing.assert_close(a.weights, b.weights, atol=1e-3, rtol=0)
        assert a.weights.std() > 0.1


# Checkpoints


@dataclass
class Saves(Callback):
    """A checkpoint after every micro-batch of the second and third rollout, and of a failure."""

    folder: Path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch in (1, 2):
            trainer.save_checkpoint(self.folder / f"{trainer.current_epoch}-{batch_idx}.ckpt")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        trainer.save_checkpoint(self.folder / "end.ckpt")


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("anchor", [PreviousRound(2), MovingAverage(0.75)])
def test_resumed_to_the_bit(anchor: Anchor, lora: LoRA | None, model: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", model, make(model, anchor, lora=lora), epochs=4, callbacks=[Saves(tmp_path)])
    for moment in ("1-3", "2-0"):
        module = make(model, anchor, lora=lora)
        with torch.no_grad():  # whatever it was made with has to come from the checkpoint
            for p in module.parameters():
                if p.requires_grad:
                    p.add_(1.0)
        rest = run(tmp_path / moment, model, module, epochs=4, ckpt_path=tmp_path / f"{moment}.ckpt")
        assert differing(whole.state, rest.state) == []
        last, expected = rest.recorder.batches[-1], whole.recorder.batches[-1]
        assert torch.equal(last.reference_logps, expected.reference_logps)  # pyright: ignore[reportArgumentType]
        assert rest.recorder.losses == whole.recorder.losses[-len(rest.recorder.losses) :]


@dataclass
class FailsAfterMoving(RolloutCallback):
    """Fails when the reference has moved and scored, but no row of the rollout is in a checkpoint yet."""

    rollout: int

    def on_rollout_end(self, trainer: Trainer, module: Any, rollouts: Any, annotation: Any, batch: Any, diagnostics: Any) -> None:
        if trainer.current_epoch == self.rollout:
            raise Killed


@pytest.mark.parametrize("rollout", [0, 2])
@pytest.mark.parametrize("anchor", [PreviousRound(2), MovingAverage(0.75)])
def test_a_rollout_that_is_drawn_again_moves_it_once(anchor: Anchor, rollout: int, model: str, tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", model, make(model, anchor), epochs=4)
    with pytest.raises(Killed):
        run(tmp_path / "killed", model, make(model, anchor), epochs=4, callbacks=[Saves(tmp_path), FailsAfterMoving(rollout)])
    rest = run(tmp_path / "rest", model, make(model, anchor), epochs=4, ckpt_path=tmp_path / "end.ckpt")
    assert differing(whole.state, rest.state) == []


def test_the_initial_reference_is_in_no_checkpoint(model: str) -> None:
    module = make(model, Initial())
    assert module.state_dict().keys() == {f"policy.{name}" for name in module.policy.state_dict()} | {"skipped_steps"}


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (Initial(), PreviousRound(1), r"reference is the initial policy, but this run has `anchor: PreviousRound\(rollouts=1\)`"),
        (PreviousRound(1), Initial(), r"reference is one that moves, and its weights are in it, but this run has `anchor: Initial\(\)`"),
    ],
)
def test_a_run_is_not_resumed_with_another_kind(before: Anchor, after: Anchor, message: str, model: str, tmp_path: Path) -> None:
    run(tmp_path / "before", model, make(model, before), epochs=1).trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(UserError, match=message):
        run(tmp_path / "after", model, make(model, after), epochs=2, ckpt_path=tmp_path / "one.ckpt")


@pytest.mark.parametrize("lora", [None, LORA])
def test_the_initial_policy_can_still_be_had(lora: LoRA | None, model: str, tmp_path: Path) -> None:
    result = run(tmp_path, model, make(model, PreviousRound(1), lora=lora), epochs=3)
    batch = result.recorder.batches[-1]
    initial = CausalPolicy(model)
    initial.layouts = result.module.policy.layouts  # which round alike
    expected = initial.make_reference().token_logps(batch)
    assert torch.equal(result.module.initial_reference().token_logps(batch), expected)
    assert not torch.allclose(result.module.reference.token_logps(batch), expected, atol=0.1)


def test_without_an_anchor_the_initial_policy_is_the_reference(model: str, tmp_path: Path) -> None:
    module = run(tmp_path, model, make(model, Initial()), epochs=1).module
    assert module.initial_reference() is module.reference


def test_nothing_of_it_is_trained(model: str) -> None:
    module = make(model, MovingAverage(0.5), lora=LORA)
    optimizer: Any = module.configure_optimizers()
    given = {p for group in optimizer.param_groups for p in group["params"]}
    assert given == {p for p in module.policy.parameters() if p.requires_grad}
    assert len(list(module.parameters())) == len(list(module.policy.parameters()))
