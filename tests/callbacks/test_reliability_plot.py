"""A picture of how sure a reward model is and how right."""

import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from callbacks import ReliabilityPlot
from callbacks.reliability_plot import binned
from lit_align.algorithms import RewardModel
from lit_align.evaluation.drawing import DOT, EDGE, SIZE, reliability_diagram
from lit_align.models import RewardNetwork
from lit_align.types import UserError
from tests.pairs import Row, pair_data
from tests.tiny import make_trainer, write_tiny

ROWS: list[Row] = [(a, [a * 2, "ij"], [1.0, 0.0]) for a in "abcdefgh"]


def test_a_pair_is_counted_where_the_model_was_as_sure():
    odds = [math.log(p / (1 - p)) for p in (0.55, 0.57, 0.85, 0.999)]
    count, sure, right = binned(torch.tensor([odds[0], -odds[1], odds[2], -odds[3]]), 5)
    assert count.tolist() == [2, 0, 0, 1, 1]
    assert sure.tolist() == pytest.approx([1.12, 0, 0, 0.85, 0.999], abs=1e-6)
    assert right.tolist() == [1, 0, 0, 1, 0]
    assert binned(torch.tensor([0.0, 1000.0]), 5)[0].tolist() == [1, 0, 0, 0, 1]
    assert binned(torch.tensor([0.0]), 5)[2].sum() == 0  # undecided is not right


def test_a_dot_is_at_its_confidence_and_accuracy():
    count = torch.tensor([0.0, 4.0])
    image = reliability_diagram(count, torch.tensor([0.0, 3.2]), torch.tensor([0.0, 3.0]))
    rows, columns = (image == torch.tensor(DOT).view(3, 1, 1)).all(0).nonzero().float().mean(0).tolist()
    assert columns == pytest.approx(EDGE + 0.6 * SIZE, abs=1)  # 0.8 between 0.5 and 1
    assert rows == pytest.approx(EDGE + 0.5 * SIZE, abs=1)  # 0.75


@pytest.mark.parametrize("board", [True, False])
def test_every_evaluation_of_a_fit_is_drawn(board: bool, tmp_path: Path) -> None:
    logger = TensorBoardLogger(str(tmp_path), name="", version="") if board else False
    trainer = make_trainer(tmp_path, max_epochs=2, check_val_every_n_epoch=1, logger=logger, callbacks=[ReliabilityPlot()])
    trainer.fit(RewardModel(RewardNetwork(write_tiny(tmp_path / "model"))), pair_data(ROWS, ROWS))
    if board:
        events = EventAccumulator(str(tmp_path))
        events.Reload()
        assert [event.step for event in events.Images("val/reliability")] == [0, 1]
    else:
        files = sorted((tmp_path / "images" / "val-reliability").iterdir())
        assert [file.name for file in files] == ["rollout-000000.png", "rollout-000001.png"]
        with Image.open(files[0]) as image:
            assert image.size == (SIZE + 2 * EDGE, SIZE + 2 * EDGE)


def test_bins_are_counted_from_one() -> None:
    with pytest.raises(UserError, match="at least one bin, got bins = 0"):
        ReliabilityPlot(bins=0)
