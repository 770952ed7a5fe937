"""Counts of how labels behave, against cases that can be counted by hand."""

import math

import pytest
import torch

from lit_align.functional.telemetry import distribution_distance, flips, length_moments, saturated, ties

NAN = math.nan


def matrix(**said: float) -> torch.Tensor:
    """``[1, 3, 3]`` with ``p01=0.2`` at row 0, column 1 and NaN elsewhere."""
    made = torch.full((1, 3, 3), NAN)
    for name, value in said.items():
        made[0, int(name[1]), int(name[2])] = value
    return made


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"p01": 0.9, "p10": 0.1}, [0, 1]),  # the same response wins in both orders
        ({"p01": 0.9, "p10": 0.6}, [1, 1]),  # the first shown wins
        ({"p01": 0.2, "p10": 0.4}, [1, 1]),  # the second shown wins
        ({"p01": 0.5, "p10": 0.9}, [0, 1]),  # undecided in one order
        ({"p01": 0.9}, [0, 0]),  # asked in one order only
        ({"p02": 0.9, "p20": 0.9, "p12": 0.1, "p21": 0.9}, [1, 2]),
    ],
)
def test_a_flip_is_a_verdict_that_depends_on_the_order(said: dict[str, float], expected: list[int]) -> None:
    assert flips(matrix(**said)).tolist() == expected


def test_ties_of_preferences_are_exact_halves() -> None:
    preferences = matrix(p01=0.5, p10=0.5, p02=0.51, p20=0.49)
    assert ties(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), preferences).tolist() == [1, 2]


def test_ties_of_scores_are_among_valid_responses_to_one_prompt() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    valid = torch.tensor([[True, True, False], [True, True, True]])
    assert ties(scores, valid).tolist() == [1, 4]


def test_saturated_prompts_have_all_valid_scores_at_one_end() -> None:
    scores = torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0], [1.0, 1.0]])
    valid = torch.tensor([[True, True], [True, True], [True, True], [True, True], [True, False], [True, True]])
    assert saturated(scores, valid, 0.0, 1.0).tolist() == [3, 5]


def test_length_moments_ignore_what_differs_between_prompts() -> None:
    lengths, scores = torch.tensor([[1, 2, 3], [101, 102, 103]]), torch.tensor([[3.0, 2.0, 1.0], [13.0, 12.0, 11.0]])
    by, length, score = length_moments(scores, lengths, torch.ones(2, 3, dtype=torch.bool)).tolist()
    assert by / math.sqrt(length * score) == pytest.approx(-1)  # of all six it would be near +1


def test_length_moments_ignore_invalid_responses() -> None:
    valid = torch.tensor([[True, True, False]])
    kept = length_moments(torch.tensor([[1.0, 2.0, NAN]]), torch.tensor([[5, 7, 1000]]), valid)
    assert torch.equal(kept, length_moments(torch.tensor([[1.0, 2.0]]), torch.tensor([[5, 7]]), valid[:, :2]))


def test_moments_add_up_to_the_correlation_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, lengths = torch.randn(6, 4, generator=generator), torch.randint(1, 50, (6, 4), generator=generator)
    valid = torch.ones(6, 4, dtype=torch.bool)
    apart = length_moments(scores[:2], lengths[:2], valid[:2]) + length_moments(scores[2:], lengths[2:], valid[2:])
    x, y = (value.double() - value.double().mean(-1, keepdim=True) for value in (lengths, scores))
    by, length, score = apart.tolist()
    assert by / math.sqrt(length * score) == pytest.approx(torch.corrcoef(torch.stack([x.flatten(), y.flatten()]))[0, 1].item())


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [([1, 2, 3], [1, 2, 3], 0), ([1, 2], [3, 4], 1), ([3, 4], [1, 2], 1), ([1, 1, 1, 2], [1, 2], 0.25), ([0, 1], [0.5], 0.5)],
)
def test_the_distance_of_distributions(first: list[float], second: list[float], distance: float) -> None:
    assert distribution_distance(torch.tensor(first).float(), torch.tensor(second).float()).item() == pytest.approx(distance)
