"""The wheel with another engine as its sampler: a policy in this process whose weights are off by a known noise."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import DAR, DPO, GRPO, RLOO
from lit_align.data import ListPrompts
from lit_align.generation import EngineSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import Source, UserError
from tests.engines import PolicyEngine
from tests.tiny import PROMPTS, adamw, make_dar, sgd
from tests.wheel.harness import Fit, differing, fit
from tests.wheel.test_mixed import make_sail, mixed
from tests.wheel.test_resume import Saves

NOISE = 0.005


def run(root: Path, model: str, noise: float = NOISE, module: Any = None, every: int = 1, ceiling: float = 2.0, **options: Any) -> Fit:
    sampler = EngineSampler(PolicyEngine(model, noise), max_new_tokens=8, synchronise_every=every, max_factor=ceiling)
    return fit(root, model, module=module or make_dar(model, optimizer=sgd(1e-3)), **({"sampler": sampler} | options))


def engine_of(result: Fit) -> PolicyEngine:
    return result.data.sampler.engine  # pyright: ignore[reportAttributeAccessIssue]


@pytest.fixture(scope="module")
def still(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    """One rollout, in which nothing moves."""
    module = make_dar(tiny, optimizer=sgd(0.0))
    return run(tmp_path_factory.mktemp("still"), tiny, module=module, ceiling=1.02, trainer={"max_epochs": 1}, chunk_prompts=3)


def test_the_mismatch_is_what_the_two_policies_differ_by(still: Fit) -> None:
    batch, rollouts, metrics = still.recorder.batches[0], still.recorder.rollouts[0], still.recorder.metrics[0]
    mask = batch.response_mask
    with torch.no_grad():
        own, engines = (policy(batch).token_logps.where(mask, 0.0) for policy in (still.module.policy, engine_of(still).policy))
    assert_close(batch.sampling_logps, own, atol=1e-5, rtol=0)
    assert_close(batch.engine_logps, engines, atol=1e-5, rtol=0)
    assert torch.equal(rollouts.engine_logps, batch.engine_logps)
    differences = own - engines
    ratios = differences.sum(-1).exp()
    assert 0.1 < (ratios > 1.02).float().mean() < 0.9
    assert_close(batch.engine_factors, ratios.clamp(max=1.02), atol=1e-4, rtol=0)
    assert 1e-3 < metrics["engine/logp_difference"] == pytest.approx(float(differences[mask].abs().mean()), rel=1e-3)
    assert metrics["engine/kl"] == pytest.approx(float((differences.exp() - 1 - differences)[mask].mean()), rel=1e-2)
    assert metrics["engine/factor_mean"] == pytest.approx(float(ratios.clamp(max=1.02).mean()), rel=1e-4)
    assert metrics["engine/clipped_fraction"] == pytest.approx(float((ratios > 1.02).float().mean()))
    assert metrics["engine/staleness"] == 0


def test_every_response_is_the_engines_and_has_a_seed_of_its_own(still: Fit) -> None:
    rollouts, engine = still.recorder.rollouts[0], engine_of(still)
    assert len(set(engine.seeds)) == 32
    assert rollouts.finished.any()
    assert not rollouts.finished.all()
    ended = rollouts.response_tokens.gather(-1, rollouts.response_mask.sum(-1, keepdim=True) - 1).squeeze(-1) == 1
    assert torch.equal(ended, rollouts.finished)
    assert engine.loads == 1, "one rollout of three chunks"
    assert engine.closed


def test_equal_weights_need_no_correction(tiny: str, root: Path) -> None:
    result = run(root, tiny, noise=0.0, trainer={"max_epochs": 1})
    assert result.recorder.metrics[0]["engine/logp_difference"] < 1e-6
    assert_close(result.recorder.batches[0].engine_factors, torch.ones(8, 4), atol=1e-5, rtol=0)


def test_without_an_engine_nothing_is_said_of_one(tiny: str, root: Path) -> None:
    result = fit(root, tiny, trainer={"max_epochs": 1})
    assert not [name for name in result.recorder.metrics[0] if name.startswith("engine/")]
    assert result.recorder.batches[0].engine_factors is None


def test_a_resumed_run_is_the_same_to_the_bit(tiny: str, root: Path) -> None:
    options: dict[str, Any] = {"micro_batch_prompts": 2, "inner_epochs": 2}
    whole = run(root, tiny, callbacks=[Saves(root)], trainer={"max_epochs": 3}, **options)
    assert max(metrics["engine/logp_difference"] for metrics in whole.recorder.metrics) > 1e-3
    for moment in ("after-2", "after-7"):  # in the second rollout, and at its end
        resumed = run(root / moment, tiny, trainer={"max_epochs": 3}, ckpt_path=root / f"{moment}.ckpt", **options)
        assert differing(whole.state, resumed.state) == []
        assert len(resumed.recorder.rollouts) == 1, "the rollout under way came with the checkpoint"
        assert resumed.recorder.rollouts[0].policy_version == 2
        assert resumed.recorder.rollouts[0].texts == whole.recorder.rollouts[2].texts


def test_older_weights_are_drawn_from_as_long_as_they_may_be(tiny: str, root: Path) -> None:
    module = GRPO(CausalPolicy(tiny), optimizer=sgd(1e-2))
    result = run(root, tiny, noise=0.0, every=2, trainer={"max_epochs": 4}, module=module)
    assert [rollouts.engine_staleness for rollouts in result.recorder.rollouts] == [0, 1, 0, 1]
    assert [rollouts.policy_version for rollouts in result.recorder.rollouts] == [0, 1, 2, 3], "what annotators that learn count by"
    assert [metrics["engine/staleness"] for metrics in result.recorder.metrics] == [0, 1, 0, 1]
    assert engine_of(result).loads == 2
    differences = [metrics["engine/logp_difference"] for metrics in result.recorder.metrics]
    assert max(differences[::2]) < 1e-6
    assert min(differences[1::2]) > 1e-3


def test_an_algorithm_for_its_own_samples_refuses_older_ones(tiny: str, root: Path) -> None:
    one_step = {"max_epochs": 1, "accumulate_grad_batches": 2}
    module = RLOO(CausalPolicy(tiny), optimizer=sgd(1e-3))
    with pytest.raises(UserError, match=r"RLOO .* EngineSampler may be of one that is 2 rollouts older\. Set its `synchronise_every` to 1"):
        run(root, tiny, module=module, every=3, trainer=one_step)
    assert run(root, tiny, module=module, trainer=one_step).trainer.global_step == 1


def test_a_large_mismatch_is_said_once(tiny: str, root: Path) -> None:
    with pytest.warns(UserWarning, match="nats per token, more than the 0.05 that rounding explains") as warned:
        run(root, tiny, noise=0.1)
    assert sum("that rounding explains" in str(w.message) for w in warned) == 1


def test_evaluations_are_of_the_policy_as_it_is(tiny: str, root: Path) -> None:
    options: dict[str, Any] = {"eval_prompts": ListPrompts(PROMPTS[:4], name="held out"), "chunk_prompts": 4}
    result = run(root, tiny, every=3, trainer={"max_epochs": 2, "check_val_every_n_epoch": 1}, module=make_dar(tiny), **options)
    assert engine_of(result).loads == 4, "for each rollout, as an evaluation came between, and for each evaluation"
    with torch.no_grad():
        for (name, weight), own in zip(result.module.policy.weights(), engine_of(result).policy.model.parameters(), strict=True):
            assert ((weight - own).abs() <= 6 * NOISE * weight.abs()).all(), name


def test_pairs_are_trained_on_as_they_are(tiny: str, root: Path) -> None:
    result = run(root, tiny, module=DPO(CausalPolicy(tiny), optimizer=sgd(1e-3)), trainer={"max_epochs": 1})
    assert result.recorder.metrics[0]["engine/factor_mean"] != 1
    assert result.trainer.global_step == 2


def test_in_a_mixture_fresh_rows_alone_have_a_factor(tiny: str, root: Path) -> None:
    sampler = EngineSampler(PolicyEngine(tiny, NOISE), max_new_tokens=6)
    module = make_sail(tiny, optimizer=sgd(1e-3))
    result = fit(root, tiny, module=module, data=mixed(sampler=sampler), trainer={"max_epochs": 1, "accumulate_grad_batches": 4})
    batch = result.data._batch
    assert batch is not None
    assert batch.source is not None
    assert batch.engine_factors is not None
    assert batch.engine_logps is not None
    fresh = batch.source >= Source.FRESH_SELF
    assert 0 < fresh.sum() < len(fresh)
    assert (batch.engine_factors[~fresh] == 1).all()
    assert (batch.engine_factors[fresh] != 1).any()
    assert (batch.engine_logps[~fresh] == 0).all()
    assert math.isfinite(result.recorder.metrics[0]["engine/kl"])


def test_an_adapter_is_sent_merged_and_stays_as_it_is(tiny: str, root: Path) -> None:
    module = DAR(CausalPolicy(tiny, lora=LoRA(rank=2)), optimizer=adamw(3e-2))
    result = run(root, tiny, noise=0.0, module=module, trainer={"max_epochs": 3})
    assert [metrics["engine/logp_difference"] < 1e-5 for metrics in result.recorder.metrics] == [True] * 3
    start = dict(CausalPolicy(tiny).model.named_parameters())
    frozen = {name.replace("base_layer.", ""): p for name, p in module.policy.model.named_parameters() if "lora_" not in name}
    assert all(torch.equal(frozen[name], weight) for name, weight in start.items()), "merged in a copy"
    moved = dict(module.policy.weights())
    assert any(not torch.equal(moved[name], weight) for name, weight in start.items())
