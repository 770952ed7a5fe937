"""Every number against a hand calculation."""

import json
import math

import pytest
import torch

from callbacks import WeightClipping
from tests.callbacks.doubles import Module, make_rollout, make_stage

NAN = math.nan


def logged(tmp_path, batch, diagnostics=None) -> dict[str, float]:
    module = Module()
    rollouts, annotation, batch = batch
    WeightClipping().on_rollout_end(make_stage(tmp_path), module, rollouts, annotation, batch, diagnostics or {})  # type: ignore[arg-type]
    return module.logged


def test_valid_weights_are_counted_and_no_others(tmp_path):
    weights = torch.tensor([[2.0, 0.0, 1.0], [1.0, NAN, 4.0]])
    scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, NAN, 2.0]])
    valid = torch.tensor([[True, True, True], [True, False, True]])
    assert logged(tmp_path, make_rollout(scores, valid, weights=weights)) == pytest.approx(
        {
            "weights/effective_sample_size": 8**2 / (5 * (4 + 1 + 1 + 16)),
            "weights/largest_share": 4 / 8,
            "weights/mean": 8 / 5,
            "weights/max": 4.0,
            "reward/zero_spread": 1 / 2,
        }
    )


def test_negative_weights_count_by_their_size_but_mean_and_max_are_signed(tmp_path):
    found = logged(tmp_path, make_rollout(torch.rand(2, 2), weights=torch.tensor([[1.0, -3.0], [2.0, 0.0]])))
    assert found["weights/effective_sample_size"] == pytest.approx(6**2 / (4 * (1 + 9 + 4)))
    assert found["weights/largest_share"] == pytest.approx(3 / 6)
    assert found["weights/max"] == 2.0
    assert found["weights/mean"] == 0.0


def test_only_negative_weights_have_a_negative_maximum(tmp_path):
    assert logged(tmp_path, make_rollout(torch.rand(1, 2), weights=torch.tensor([[-1.0, -3.0]])))["weights/max"] == -1.0


def test_a_rank_without_a_prompt_has_nothing_to_say(tmp_path):
    assert logged(tmp_path, make_rollout(torch.rand(0, 2), weights=torch.rand(0, 2))) == {}


def test_squares_do_not_overflow(tmp_path):
    found = logged(tmp_path, make_rollout(torch.rand(1, 2), weights=torch.tensor([[1e30, 1e30]])))
    assert found["weights/effective_sample_size"] == 1.0


def test_a_lone_valid_score_is_no_equal_group(tmp_path):
    scores, valid = torch.tensor([[1.0, 5.0], [2.0, 2.0], [1.0, 2.0]]), torch.tensor([[True, False], [True, True], [True, True]])
    assert logged(tmp_path, make_rollout(scores, valid, weights=torch.ones(3, 2)))["reward/zero_spread"] == 0.5
    assert "reward/zero_spread" not in logged(tmp_path, make_rollout(scores[:1], valid[:1], weights=torch.ones(1, 2)))


def test_weights_that_are_all_zero_have_no_shares(tmp_path):
    found = logged(tmp_path, make_rollout(torch.tensor([[1.0, 2.0]]), weights=torch.zeros(1, 2)))
    assert found == {"weights/mean": 0.0, "weights/max": 0.0, "reward/zero_spread": 0.0}


def test_without_a_valid_response_nothing_is_said_of_weights(tmp_path):
    assert logged(tmp_path, make_rollout(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), weights=torch.ones(1, 2))) == {}


def test_an_algorithm_without_weights_logs_nothing(tmp_path):
    assert logged(tmp_path, make_rollout(torch.zeros(1, 2))) == {}
    assert list(tmp_path.iterdir()) == []


def test_histograms_are_in_powers_of_ten_and_split_into_their_summands(tmp_path):
    weights, valid = torch.tensor([[0.01, -100.0, 0.0, 1e9]]), torch.tensor([[True, True, True, False]])
    parts = {"weights/reference_part": torch.log(torch.tensor([[0.1, 10.0, 1.0, 7.0]])), "weights/advantage_part": torch.full((1, 4), 2.0)}
    logged(tmp_path, make_rollout(torch.zeros(1, 4), valid, weights=weights), parts)
    folders = {folder.name: json.loads((folder / "rollout-000012.json").read_text()) for folder in (tmp_path / "histograms").iterdir()}
    assert {name: sum(read["counts"]) for name, read in folders.items()} == {
        "weights-log10": 2,  # neither zero nor invalid
        "weights-log10_reference_part": 3,
        "weights-log10_advantage_part": 3,
    }
    assert (folders["weights-log10"]["edges"][0], folders["weights-log10"]["edges"][-1]) == pytest.approx((-2.0, 2.0))
    edges = folders["weights-log10_reference_part"]["edges"]
    assert (edges[0], edges[-1]) == pytest.approx((-1.0, 1.0))
    edges = folders["weights-log10_advantage_part"]["edges"]
    assert edges[0] <= 2 / math.log(10) <= edges[-1]
