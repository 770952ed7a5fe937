"""The wheel with a bfloat16 copy of the policy as its sampler."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from lit_align.algorithms import DAR, RLOO
from lit_align.data import ListPrompts
from lit_align.generation import Bfloat16Sampler, CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, RolloutCallback, Rollouts, UserError
from tests.tiny import PROMPTS, adamw, make_dar, sgd
from tests.wheel.harness import Fit, differing, fit
from tests.wheel.test_resume import Saves


def run(root: Path, model: str, module: Any = None, ceiling: float = 2.0, **options: Any) -> Fit:
    sampler = Bfloat16Sampler(max_new_tokens=8, max_factor=ceiling)
    return fit(root, model, module=module or make_dar(model), **({"sampler": sampler} | options))


def copy_of(result: Fit) -> CausalPolicy:
    return result.data.sampler._copy  # pyright: ignore[reportAttributeAccessIssue]


@dataclass
class Copies(RolloutCallback):
    """How far the copy is from the rounded policy when a rollout ends, and after the step that follows."""

    seen: list[tuple[str, float]] = field(default_factory=list)
    places: set[int] = field(default_factory=set)

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        self._look("sampled", trainer, module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._look("stepped", trainer, pl_module)

    def _look(self, when: str, trainer: Any, module: Any) -> None:
        own = dict(trainer.datamodule.sampler._copy.model.named_parameters())
        gaps = [(own[name] - weight.bfloat16()).abs().max() for name, weight in module.policy.weights()]
        self.seen.append((when, float(max(gaps))))
        self.places |= {next(iter(own.values())).data_ptr()}


@pytest.fixture(scope="module")
def still(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """One rollout of three chunks, in which nothing moves."""
    module = make_dar(tiny, optimizer=sgd(0.0))
    return run(tmp_path_factory.mktemp("still"), tiny, module, ceiling=1.001, trainer={"max_epochs": 1}, chunk_prompts=3)


def test_log_probs_are_the_float32_policys_and_factors_lead_from_the_copy_to_it(still: Fit) -> None:
    batch, metrics = still.recorder.batches[0], still.recorder.metrics[0]
    mask = batch.response_mask
    with torch.no_grad():
        own = still.module.policy(batch).token_logps.where(mask, 0.0)
    assert_close(batch.sampling_logps, own, atol=1e-5, rtol=0)
    assert batch.engine_logps is not None
    assert batch.engine_factors is not None
    differences = own - batch.engine_logps
    assert 1e-3 < float(differences[mask].abs().mean()) < 0.05
    ratios = differences.sum(-1).exp()
    cut = ratios > 1.001
    assert 0.1 < cut.float().mean() < 0.9
    assert_close(batch.engine_factors.where(cut, 1.001), torch.full((8, 4), 1.001), atol=1e-6, rtol=0)
    # What the copy draws with probability q counts as often as the policy would draw it: f q = pi.
    drawn, wanted = batch.engine_logps.sum(-1).exp(), own.sum(-1).exp()
    assert_close((batch.engine_factors * drawn)[~cut], wanted[~cut], atol=0, rtol=1e-4)
    assert metrics["engine/logp_difference"] == pytest.approx(float(differences[mask].abs().mean()), rel=1e-3)
    assert metrics["engine/clipped_fraction"] == pytest.approx(float(cut.float().mean()))
    assert metrics["engine/staleness"] == 0


def test_the_copy_follows_every_step_when_the_next_rollout_begins(tiny: str, root: Path) -> None:
    copies = Copies()
    module = RLOO(CausalPolicy(tiny), optimizer=sgd(0.3))  # which takes its own samples only
    result = run(root, tiny, module, callbacks=[copies], trainer={"max_epochs": 3, "accumulate_grad_batches": 2}, chunk_prompts=3)
    assert [when for when, _ in copies.seen] == ["sampled", "stepped"] * 3
    assert [gap for when, gap in copies.seen if when == "sampled"] == [0.0] * 3
    assert all(gap > 1e-3 for when, gap in copies.seen if when == "stepped")
    assert len(copies.places) == 1
    assert copy_of(result) is None, "its memory is given back"


def test_a_resumed_run_is_the_same_to_the_bit(tiny: str, root: Path) -> None:
    options: dict[str, Any] = {"micro_batch_prompts": 2, "inner_epochs": 2}
    whole = run(root, tiny, callbacks=[Saves(root)], trainer={"max_epochs": 3}, **options)
    resumed = run(root / "again", tiny, trainer={"max_epochs": 3}, ckpt_path=root / "after-7.ckpt", **options)
    assert differing(whole.state, resumed.state) == []
    assert resumed.recorder.rollouts[-1].texts == whole.recorder.rollouts[2].texts


def test_evaluations_are_of_the_policy_in_float32(tiny: str, root: Path) -> None:
    options: dict[str, Any] = {"eval_prompts": ListPrompts(PROMPTS[:4], name="held out"), "chunk_prompts": 4}
    still = {"max_epochs": 1, "check_val_every_n_epoch": 1}
    found: dict[str, dict[str, Tensor]] = {}
    for kind in (Bfloat16Sampler, CacheSampler):
        module = make_dar(tiny, optimizer=sgd(0.0))
        result = fit(root / kind.__name__, tiny, module=module, sampler=kind(max_new_tokens=8), trainer=still, **options)
        found[kind.__name__] = {name: value for name, value in result.trainer.callback_metrics.items() if name.startswith("val/")}
    rounded, exact = found.values()
    assert rounded.keys() == exact.keys()
    assert len(exact) > 2
    assert all(torch.equal(rounded[name], value) for name, value in exact.items())


def test_an_adapter_in_mixed_precision(tiny: str, root: Path) -> None:
    module = DAR(CausalPolicy(tiny, lora=LoRA(rank=2)), optimizer=adamw(3e-2))
    result = run(root, tiny, module, trainer={"max_epochs": 2, "precision": "bf16-mixed"})
    assert all(0 < metrics["engine/logp_difference"] < 0.05 for metrics in result.recorder.metrics)
    assert result.trainer.global_step == 4


def test_a_policy_that_the_trainer_has_rounded_is_refused(tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"its weights are bfloat16 already.*precision: bf16-true"):
        run(root, tiny, trainer={"max_epochs": 1, "precision": "bf16-true"})
