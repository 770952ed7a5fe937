"""What must not happen to a run: it is refused with its remedy, or left out and counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lit_align.algorithms import BatchMean, CentredWeights, ClippedWeights, GroupWeights
from lit_align.types import UserError
from tests.tiny import make_dar, vowels
from tests.wheel.harness import PlantedGradient, Poison, Scores, Weights, differing, fit

FOUR_STEPS: dict[str, Any] = {"micro_batch_prompts": 1, "trainer": {"accumulate_grad_batches": 2, "max_epochs": 1}}


@pytest.mark.parametrize("poisoned", [2, 3])
def test_a_step_with_an_infinite_loss_is_left_out(poisoned: int, tiny: str, root: Path) -> None:
    weights = Weights()
    result = fit(root, tiny, callbacks=[Poison((poisoned,)), weights], **FOUR_STEPS)
    before, after = weights.seen[1], weights.seen[2]
    assert "optimizer.0.exp_avg" in before
    assert differing(before, after) == ["skipped_steps"]
    assert "policy.model.model.norm.weight" in differing(after, weights.seen[3]), "the next step is taken"
    assert int(result.module.skipped_steps) == 1
    assert result.recorder.metrics[-1]["train/skipped_steps"] == 1.0
    assert result.trainer.global_step == 4, "it counts as a step all the same"
    assert all(value.isfinite().all() for value in result.state.values())
    assert [math.isfinite(loss) for loss in result.recorder.losses] == [True, False, True, True]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("planted", [math.inf, math.nan])
def test_a_step_with_a_gradient_that_is_not_finite_is_left_out(planted: float, accumulate: int, tiny: str, root: Path) -> None:
    weights, options = Weights(), {"accumulate_grad_batches": accumulate, "max_epochs": 1, "gradient_clip_val": 1.0}
    plant = PlantedGradient(1, planted)
    result = fit(root, tiny, callbacks=[plant, weights], micro_batch_prompts=4 // accumulate, prompts_per_rollout=16, trainer=options)
    assert "optimizer.0.exp_avg" in weights.seen[1]
    assert differing(weights.seen[1], weights.seen[2]) == ["skipped_steps"]
    assert "policy.model.model.norm.weight" in differing(weights.seen[2], weights.seen[3]), "the next step is taken"
    assert result.recorder.metrics[-1]["train/skipped_steps"] == 1.0
    assert result.trainer.global_step == 4
    assert all(value.isfinite().all() for value in result.state.values())
    assert all(math.isfinite(loss) for loss in result.recorder.losses), "its loss was finite"


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_norm_of_the_gradient_is_that_before_clipping(accumulate: int, tiny: str, root: Path) -> None:
    watch, options = PlantedGradient(-1), {"accumulate_grad_batches": accumulate, "gradient_clip_val": 1e-3}
    result = fit(root, tiny, callbacks=[watch], micro_batch_prompts=8 // accumulate, trainer=options)
    assert [metrics["train/gradient_norm"] for metrics in result.recorder.metrics] == pytest.approx(watch.norms, rel=1e-5)
    assert min(watch.norms) > 1e-2


def test_a_step_without_a_valid_row_is_left_out(tiny: str, root: Path) -> None:
    asked: list[Any] = []

    def speechless_at_first(prompt: Any, texts: Any) -> list[float]:
        asked.append(prompt)
        return [math.nan] * len(texts) if len(asked) in (3, 4) else vowels(prompt, texts)

    weights = Weights()
    result = fit(root, tiny, callbacks=[weights], annotator=Scores(speechless_at_first), **FOUR_STEPS)
    assert differing(weights.seen[1], weights.seen[2]) == ["skipped_steps"]
    assert "policy.model.model.norm.weight" in differing(weights.seen[2], weights.seen[3])
    assert int(result.module.skipped_steps) == 1
    assert result.recorder.metrics[-1]["labels/invalid"] == 8.0


def test_a_half_valid_step_is_taken(tiny: str, root: Path) -> None:
    asked: list[Any] = []

    def speechless_once(prompt: Any, texts: Any) -> list[float]:
        asked.append(prompt)
        return [math.nan] * len(texts) if len(asked) == 3 else vowels(prompt, texts)

    result = fit(root, tiny, annotator=Scores(speechless_once), **FOUR_STEPS)
    assert int(result.module.skipped_steps) == 0


def test_a_rollout_without_any_score_ends_the_run(tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"no valid score for any of the 32 responses of rollout 0.*try it on one prompt"):
        fit(root, tiny, annotator=Scores(lambda prompt, texts: [math.nan] * len(texts)))


@pytest.mark.parametrize("parts", [{}, {"baseline": BatchMean(), "weighting": GroupWeights()}])
def test_lone_responses_have_no_siblings_to_be_compared_with(parts: dict[str, Any], tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"at least 2 of them, got responses_per_prompt = 1\..*BatchMean.*ClippedWeights"):
        fit(root, tiny, module=make_dar(tiny, **parts), responses_per_prompt=1)


def test_lone_responses_train_against_the_mean_of_the_batch(tiny: str, root: Path) -> None:
    result = fit(
        root, tiny, module=make_dar(tiny, baseline=BatchMean(), weighting=ClippedWeights()), responses_per_prompt=1, micro_batch_prompts=8
    )
    assert result.recorder.batches[0].advantages is not None
    assert abs(float(result.recorder.batches[0].advantages.sum())) < 1e-3
    assert result.recorder.batches[0].advantages.std() > 0
    assert result.trainer.global_step == 2


@pytest.mark.parametrize("options", [{"inner_epochs": 2, "micro_batch_prompts": 8}, {"micro_batch_prompts": 4}])
def test_several_steps_per_rollout_are_refused_where_samples_must_be_fresh(options: dict[str, int], tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"makes 2 optimizer steps\. Set inner_epochs to 1 and prompts_per_rollout to \d"):
        fit(root, tiny, module=make_dar(tiny, weighting=CentredWeights()), **options)


def test_one_step_per_rollout_is_fresh(tiny: str, root: Path) -> None:
    module = make_dar(tiny, weighting=CentredWeights())
    trainer = {"accumulate_grad_batches": 2}
    assert fit(root, tiny, module=module, micro_batch_prompts=4, trainer=trainer).trainer.global_step == 2


@pytest.mark.parametrize("scheduling", [{0: 2}, {4: 2}])
def test_an_accumulation_that_changes_is_refused(scheduling: dict[int, int], tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"GradientAccumulationScheduler.*set trainer\.accumulate_grad_batches"):
        fit(root, tiny, callbacks=[GradientAccumulationScheduler(scheduling)])


@pytest.mark.parametrize("every", [0, 2])
def test_old_rollouts_are_refused(every: int, tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"set trainer\.reload_dataloaders_every_n_epochs to 1"):
        fit(root, tiny, trainer={"reload_dataloaders_every_n_epochs": every})


def test_a_response_without_an_end_pays_for_it(tiny: str, root: Path) -> None:
    plain = fit(root / "plain", tiny, trainer={"max_epochs": 1}).recorder
    fined = fit(root / "fined", tiny, trainer={"max_epochs": 1}, missing_eos_penalty=3.0).recorder
    finished = plain.rollouts[0].finished
    assert finished.any()
    assert not finished.all()
    difference = plain.batches[0].scores - fined.batches[0].scores
    torch.testing.assert_close(difference, 3.0 * (~finished).float())
    assert plain.metrics[0]["reward/mean"] == fined.metrics[0]["reward/mean"], "the reward is the annotator's"


def test_a_gradient_scaler_is_refused(tiny: str, root: Path) -> None:
    class Scaled:
        precision = "16-mixed"

    module = make_dar(tiny)
    module._trainer = Scaled()  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match="bf16-mixed"):
        module.setup("fit")
