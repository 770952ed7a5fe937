"""What is logged of a step is what the optimizer was given."""

import math
from pathlib import Path

import pytest
from torch.optim.lr_scheduler import LinearLR

from tests.callbacks.doubles import fit
from tests.tiny import make_dar, make_data
from tests.wheel.harness import Poison


@pytest.mark.parametrize("accumulate", [1, 2])
def test_rate_and_norm_of_every_step(root: Path, tiny: str, accumulate: int) -> None:
    module = make_dar(tiny, lr_schedule=lambda optimizer: LinearLR(optimizer, start_factor=0.25, total_iters=3))
    data = make_data(micro_batch_prompts=4 // accumulate)
    _, curves = fit(root, tiny, [], module=module, data=data, accumulate_grad_batches=accumulate)
    assert curves["train/learning_rate"] == pytest.approx({0: 0.0025, 1: 0.005, 2: 0.0075, 3: 0.01})
    assert list(curves["train/gradient_norm"]) == list(curves["train/loss"]) == [0, 1, 2, 3]


def test_the_norm_is_that_of_the_whole_step_before_clipping(root: Path, tiny: str) -> None:
    """Two micro-batches have the gradient of one, and clipping does not show."""
    norms = []
    for micro, accumulate, clip in ((8, 1, None), (4, 2, None), (8, 1, 1e-3)):
        more = {"accumulate_grad_batches": accumulate, "gradient_clip_val": clip, "max_epochs": 1}
        _, curves = fit(root / f"{micro}{clip}", tiny, [], data=make_data(micro_batch_prompts=micro), **more)
        norms.append(curves["train/gradient_norm"][0])
    assert norms[0] > 1e-2
    assert norms[1:] == pytest.approx([norms[0]] * 2, rel=1e-5)


def test_a_step_that_is_not_finite_shows(root: Path, tiny: str) -> None:
    _, curves = fit(root, tiny, [Poison((0,))], max_epochs=1)
    assert not math.isfinite(curves["train/gradient_norm"][0])
    assert math.isfinite(curves["train/gradient_norm"][1])
    assert curves["train/skipped_steps"] == {0: 1.0, 1: 1.0}
