"""Sampler, training forward and reference see the same tokens at the same positions, in any precision."""

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.algorithms import DAR, AlignmentModule
from lit_align.algorithms.reduction import in_chunks
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.models.decoding import PaddedRows
from lit_align.types import AlignmentBatch, Rollouts, UserError
from tests.tiny import adamw, make_dar, sgd, write_tiny
from tests.wheel.harness import fit

MIXED = {"precision": "bf16-mixed"}


def flat(module: AlignmentModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.policy.parameters()])


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("pad", [True, False])
def test_the_first_divergence_is_none(pad: bool, temperature: float, tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", pad=pad)
    module = DAR(CausalPolicy(model, temperature=temperature), optimizer=adamw())
    result = fit(tmp_path, model, module=module, trainer={"max_epochs": 1}, responses_per_prompt=8)
    rollouts, batch = result.recorder.rollouts[0], result.recorder.batches[0]
    assert len({int(n) for n in rollouts.prompt_mask.sum(-1)}) > 2
    assert rollouts.finished.any()
    assert not rollouts.finished.all()
    assert module.policy.pad_id == (0 if pad else 1)
    assert_close(batch.sampling_logps, batch.reference_logps, atol=1e-4, rtol=0)
    assert abs(float((batch.sampling_response_logps - batch.reference_response_logps).mean())) < 1e-4
    assert float(batch.sampling_response_logps.mean()) < -5, "there are nats to disagree about"


def test_to_keep_the_samplers_log_probs_saves_forwards_and_changes_nothing(tiny: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def recomputed(self: AlignmentModule, batch: AlignmentBatch, chunk_prompts: int) -> AlignmentBatch:
        return replace(batch, sampling_logps=in_chunks(self._logps, batch, chunk_prompts))

    found, forwards = [], []
    for recompute in (False, True):
        if recompute:
            monkeypatch.setattr(AlignmentModule, "_with_training_logps", recomputed)
        module, count = make_dar(tiny, optimizer=sgd(1.0)), Counter[bool]()
        before = flat(module)
        module.policy.register_forward_hook(lambda *_, count=count: count.update([torch.is_grad_enabled()]))
        fit(root / str(recompute), tiny, module=module, trainer={"max_epochs": 3}, chunk_prompts=4)
        found.append(flat(module) - before)
        forwards.append(count)
    assert forwards[0] == {True: 6, False: 1}, "six micro-batches, and the first chunk to see that both agree"
    assert forwards[1] == {True: 6, False: 6}
    assert found[0].norm() > 0.1
    assert (found[0] - found[1]).norm() < 1e-4 * found[0].norm()


@pytest.mark.parametrize("shift", [-1, 1])
def test_a_wrong_position_in_the_cache_ends_the_run(shift: int, tiny: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = make_dar(tiny)
    module.policy._way, module.policy.decoding = PaddedRows, "PaddedRows"  # as if the probe had been content
    model = module.policy.model
    forward = model.forward

    def shifted(*args: Any, position_ids: Tensor | None = None, **options: Any) -> Any:
        moved = position_ids is not None and position_ids.shape[1] == 1
        return forward(*args, position_ids=position_ids + shift if moved else position_ids, **options)

    monkeypatch.setattr(model, "forward", shifted)
    with pytest.raises(
        UserError, match=r"disagree by \d.* nats on a token.*CausalPolicy reads masks or positions differently with a cache"
    ):
        fit(root, tiny, module=module)


@pytest.mark.parametrize("offset", [5e-3, -5e-3])
def test_a_cache_that_is_a_little_off_is_warned_of(offset: float, tiny: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = CausalPolicy.next_token_logits

    def tilted(self: CausalPolicy, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        logits, cache = right(self, tokens, mask, cache)
        logits[:, 3] += offset
        return logits, cache

    monkeypatch.setattr(CausalPolicy, "next_token_logits", tilted)
    with pytest.warns(UserWarning, match=r"differ by \d\.\de-0[34] nats per token, more than the 1e-4") as warned:
        fit(root, tiny)
    assert sum("nats per token, more" in str(w.message) for w in warned) == 1, "once per process"


def test_mixed_precision_recomputes_the_sampling_log_probs(tiny: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sampler's own, which are 1 nat too small here, are not taken."""
    sample = CacheSampler.sample

    def understated(*given: Any) -> Rollouts:
        rollouts = sample(*given)
        return replace(rollouts, sampling_logps=(rollouts.sampling_logps - 1).where(rollouts.response_mask, 0.0))

    monkeypatch.setattr(CacheSampler, "sample", understated)
    result = fit(root, tiny, module=make_dar(tiny, optimizer=sgd(0.0)), trainer=MIXED | {"max_epochs": 1})
    drawn, batch = result.recorder.rollouts[0].sampling_logps, result.recorder.batches[0]
    assert result.trainer.precision == "bf16-mixed"
    with torch.autocast("cpu", dtype=torch.bfloat16):
        trained = result.module.policy(batch).token_logps.detach()
    exact = result.module.policy(batch).token_logps.detach()
    assert batch.sampling_logps is not None
    assert batch.sampling_logps.dtype == trained.dtype == torch.float32
    assert_close(batch.sampling_logps, trained.where(batch.response_mask, 0.0), atol=1e-2, rtol=0)
    assert_close(batch.reference_logps, batch.sampling_logps, atol=1e-2, rtol=0)
    assert (batch.sampling_logps - drawn)[batch.response_mask].min() > 0.9
    assert (exact.where(batch.response_mask, 0.0) - batch.sampling_logps).abs().max() > 1e-3, "autocast was on"


def test_mixed_precision_with_clipping_and_accumulation(tiny: str, root: Path) -> None:
    options = {"accumulate_grad_batches": 2, "gradient_clip_val": 1e-3, "max_epochs": 1}
    start = dict(CausalPolicy(tiny).named_parameters())
    lengths = []
    for clip in ({}, {"gradient_clip_val": None}):
        module = make_dar(tiny, optimizer=sgd(1.0))
        result = fit(root, tiny, module=module, trainer=MIXED | options | clip)
        assert result.trainer.global_step == 1
        assert all(p.dtype == torch.float32 for p in module.policy.parameters())
        moved = [(p.detach() - start[name].detach()).square().sum() for name, p in module.policy.named_parameters()]
        lengths.append(float(torch.stack(moved).sum().sqrt()))
    assert lengths[0] == pytest.approx(1e-3, rel=1e-2)
    assert lengths[1] > 1.0


def test_mixed_precision_learns_and_evaluates(tiny: str, root: Path) -> None:
    from tests.wheel.test_evaluation import HELD_OUT

    result = fit(root, tiny, trainer=MIXED | {"max_epochs": 4, "accumulate_grad_batches": 2, "check_val_every_n_epoch": 1}, **HELD_OUT)
    rewards = [metrics["reward/mean"] for metrics in result.recorder.metrics]
    assert rewards[-1] > rewards[0] + 0.1
    assert int(result.module.skipped_steps) == 0
    assert result.recorder.metrics[-1]["val/kl_reference"] > 0.1
