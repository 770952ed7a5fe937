"""Divergence against a hand calculation, and a run that ends where it should."""

import math
from dataclasses import replace

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import callbacks.kl_monitor
from callbacks import KLMonitor
from lit_align.types import Source, UserError
from tests.callbacks.doubles import Module, Notes, copy_of, fit, make_rollout, make_stage, same
from tests.tiny import make_dar, make_data

LOGPS = torch.tensor([[[-1.0, -2.0], [-1.0, -1.0]], [[-3.0, -5.0], [-1.0, -4.0]]])  # pi_t, [B, K, T]
REFERENCE = torch.tensor([[[-2.0, -4.0], [-1.0, -2.0]], [[-3.0, -9.0], [math.nan, -1.0]]])
VALID = torch.tensor([[True, True], [True, False]])
MASK = torch.tensor([[[True, True], [True, True]], [[True, False], [True, True]]])  # a tool wrote one token


def told(tmp_path, monitor, **options) -> dict[str, float]:
    module = Module()
    rollout = make_rollout(torch.zeros(2, 2), **({"valid": VALID, "logps": LOGPS, "reference": REFERENCE} | options))
    monitor.on_rollout_end(make_stage(tmp_path), module, *rollout, {})
    return module.logged


def test_the_mean_is_over_valid_responses_of_sums_over_tokens(tmp_path):
    found = told(tmp_path, KLMonitor())  # 3, 1 of the first prompt; 4 of the second
    mean = (3 + 1 + 4) / 3
    squares = (3 - mean + 1 - mean) ** 2 + (4 - mean) ** 2  # a prompt is one draw
    error = math.sqrt(squares * 2 / (2 - 1)) / 3
    assert found == pytest.approx({"kl/reference": mean, "kl/reference_standard_error": error})


def test_with_one_response_each_the_error_is_the_usual_one(tmp_path):
    logps = torch.tensor([1.0, 2.0, 6.0, 3.0]).view(4, 1, 1)
    rollout = make_rollout(torch.zeros(4, 1), logps=logps, reference=torch.zeros(4, 1, 1))
    module = Module()
    KLMonitor().on_rollout_end(make_stage(tmp_path), module, *rollout, {})  # type: ignore[arg-type]
    assert module.logged["kl/reference_standard_error"] == pytest.approx(float(logps.std()) / 2)


def test_tokens_that_the_policy_did_not_write_are_left_out(tmp_path):
    assert told(tmp_path, KLMonitor(), loss_mask=MASK)["kl/reference"] == pytest.approx((3 + 1 + 0) / 3)


def test_answers_that_nobody_was_to_label_count_and_the_datas_do_not(tmp_path):
    rollouts, annotation, batch = make_rollout(torch.zeros(2, 2), valid=torch.zeros(2, 2).bool(), logps=LOGPS, reference=REFERENCE)
    batch = replace(batch, source=torch.tensor([Source.FRESH_SELF, Source.FRESH_ANNOTATED]), valid=torch.ones(2, 2).bool())
    module, monitor, stage = Module(), KLMonitor(), make_stage(tmp_path)
    monitor.on_rollout_end(stage, module, rollouts, annotation, batch, {})
    assert module.logged["kl/reference"] == 2.0
    monitor.on_train_epoch_start(stage, module)
    batch = replace(batch, source=torch.tensor([Source.FIXED, Source.FRESH_ANNOTATED]))
    monitor.on_train_batch_end(stage, module, {"logps": torch.tensor([[-30.0, -2.0], [-9.0, -6.0]])}, batch, 0)
    monitor.on_train_epoch_end(stage, module)
    assert stage.callback_metrics == {"kl/sampling": pytest.approx((1 + 1) / 2)}


def test_one_prompt_has_no_error(tmp_path):
    assert told(tmp_path, KLMonitor(), valid=torch.tensor([[True, True], [False, False]])) == {"kl/reference": 2.0}


def test_the_sampling_divergence_is_the_mean_over_the_epoch(tmp_path):
    monitor, stage, module = KLMonitor(), make_stage(tmp_path), Module()
    batch = make_rollout(torch.zeros(2, 2), VALID, logps=LOGPS)[2]
    monitor.on_train_epoch_start(stage, module)
    for logps in ([[-3.0, -2.0], [-8.0, math.nan]], [[-4.0, -2.5], [-6.0, 0.0]]):
        monitor.on_train_batch_end(stage, module, {"logps": torch.tensor(logps)}, batch, 0)
    monitor.on_train_epoch_end(stage, module)
    assert stage.callback_metrics == {"kl/sampling": pytest.approx((0 + 0 + 0 + 1 + 0.5 - 2) / 6)}
    stage.callback_metrics.clear()
    monitor.on_train_epoch_start(stage, module)
    monitor.on_train_epoch_end(stage, module)
    assert stage.callback_metrics == {}  # nothing is left of the last epoch


def test_numbers_are_plotted_at_their_rollout(root, model):
    _, curves = fit(root, model, [KLMonitor()], data=make_data(inner_epochs=2))
    assert curves["kl/reference"].keys() == curves["kl/sampling"].keys() == {0, 1}
    assert curves["kl/reference"][0] == pytest.approx(0.0, abs=1e-5)
    assert abs(curves["kl/reference"][1]) > 0.01
    assert abs(curves["kl/sampling"][0]) > 1e-3


def test_one_step_per_rollout_is_on_policy(root, model):
    _, curves = fit(root, model, [KLMonitor()], data=make_data(micro_batch_prompts=8))
    assert max(map(abs, curves["kl/sampling"].values())) < 1e-5


@pytest.mark.parametrize("save_every", [1, 2])
def test_the_ceiling_ends_the_run_before_the_rollout_is_trained_on(root, model, monkeypatch, save_every):
    said: list[str] = []
    monkeypatch.setattr(callbacks.kl_monitor, "rank_zero_info", said.append)
    free, curves = fit(root / "free", model, [KLMonitor(), notes := Notes()], max_epochs=4)
    kl, over = curves["kl/reference"], 2
    assert kl[0] < kl[1] < kl[2]
    ceiling = (kl[1] + kl[2]) / 2
    assert not said

    kept = ModelCheckpoint(root / "kept", save_top_k=-1, every_n_epochs=save_every)
    stopped, seen = fit(root / "stopped", model, [KLMonitor(ceiling), kept], max_epochs=4, enable_checkpointing=True)
    assert seen["kl/reference"] == {rollout: kl[rollout] for rollout in range(over + 1)}  # the one that was too far is in the plot
    assert stopped.global_step == 2 * over < free.global_step
    assert same(copy_of(stopped.lightning_module.policy), notes.weights[over])
    assert len(said) == 1
    for part in (f"{kl[over]:.4g}", f"rollout {over}", f"ceiling of {ceiling:g}", "raise"):
        assert part in said[0]
    steps = sorted(torch.load(path, weights_only=True)["global_step"] for path in (root / "kept").iterdir())
    assert steps == ([2, 4] if save_every == 1 else [4])  # those from before


def test_a_resumed_run_stops_at_the_ceiling_again(root, model):
    first, _ = fit(root, model, [KLMonitor(0.1)], max_epochs=1)
    first.save_checkpoint(root / "first.ckpt")
    for _ in range(2):
        again, curves = fit(root, model, [KLMonitor(0.1)], max_epochs=4, ckpt_path=root / "first.ckpt")
        assert curves["kl/reference"].keys() == {1}
        assert again.global_step == first.global_step
        assert same(copy_of(again.lightning_module.policy), copy_of(first.lightning_module.policy))


def test_the_first_rollout_can_be_too_far_already(root, model):
    module = make_dar(model)
    with torch.no_grad():
        next(module.policy.parameters()).mul_(2)
    before = copy_of(module.policy)
    trainer, curves = fit(root, model, [KLMonitor(0.1)], module=module)
    assert trainer.global_step == 0
    assert same(copy_of(module.policy), before)
    assert list(curves["kl/reference"]) == [0]


def test_a_run_under_its_ceiling_is_untouched(root, model):
    trainer, _ = fit(root, model, [KLMonitor(1e6)])
    assert trainer.global_step == 4


def test_what_is_not_a_number_is_over_any_ceiling(tmp_path):
    for ceiling, stops in ((1.0, True), (math.inf, False)):
        stage, monitor = make_stage(tmp_path), KLMonitor(ceiling)
        told(tmp_path, monitor, valid=torch.ones(2, 2, dtype=torch.bool))  # with the NaN
        monitor.on_train_epoch_start(stage, Module())  # type: ignore[arg-type]
        assert stage.should_stop is stops


@pytest.mark.parametrize("limits", [{"min_epochs": 1}, {"min_steps": 3}])
def test_a_trainer_that_would_not_stop_is_refused(root, model, limits):
    with pytest.raises(UserError, match="Leave them out of the trainer"):
        fit(root, model, [KLMonitor(0.1)], **limits)
    fit(root, model, [KLMonitor()], max_epochs=1, **({"min_epochs": 1} if "min_epochs" in limits else {"min_steps": 1}))


@pytest.mark.parametrize("ceiling", [0.0, -1.0, math.nan])
def test_a_ceiling_is_positive(ceiling):
    with pytest.raises(UserError, match="positive number of nats"):
        KLMonitor(ceiling)
