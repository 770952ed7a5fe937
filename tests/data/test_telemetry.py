"""What is said of labels, and when."""

import math
import warnings

import pytest
import torch

from lit_align.data import LabelTelemetry
from lit_align.types import Annotation, UserError

NAN = math.nan
LENGTHS = torch.tensor([[3, 5], [9, 4]])


def annotation(scores: list[list[float]], valid: list[list[bool]] | None = None, **fields: object) -> Annotation:
    made = torch.tensor(scores)
    return Annotation(scores=made, valid=torch.ones_like(made, dtype=torch.bool) if valid is None else torch.tensor(valid), **fields)  # pyright: ignore[reportArgumentType]


def pair(first_over_second: float, second_over_first: float) -> torch.Tensor:
    return torch.tensor([[[NAN, first_over_second], [second_over_first, NAN]]] * 2)


def test_what_is_known_of_scores_alone() -> None:
    measured = LabelTelemetry().measure(annotation([[0.0, 1.0], [1.0, 0.0]], [[True, True], [True, False]]), LENGTHS)
    assert measured == {"invalid_share": 0.25, "saturated": 0.0, "length_correlation": pytest.approx(1.0), "drift": 0.0}


def test_what_is_known_of_a_judge() -> None:
    said = annotation(
        [[0.5, 0.5], [0.5, 0.5]], preferences=pair(0.5, 0.5), seen_first=pair(0.9, 0.9), mass=torch.tensor([[1.0, 0.5], [NAN, 0.3]])
    )
    measured = LabelTelemetry().measure(said, LENGTHS)
    assert measured == {
        "invalid_share": 0,
        "saturated": 1,
        "ties": 1,
        "flips": 1,
        "length_correlation": 0,
        "option_mass": pytest.approx(0.6),
        "drift": 0,
    }


def test_a_rank_that_was_asked_nothing_measures_nothing() -> None:
    nothing = Annotation(scores=torch.zeros(0, 2), valid=torch.zeros(0, 2, dtype=torch.bool))
    assert LabelTelemetry().measure(nothing, torch.zeros(0, 2)) == {}


def test_drift_is_from_the_first_rollouts() -> None:
    telemetry, early, late = LabelTelemetry(first_rollouts=2), annotation([[0.0, 1.0], [0.0, 1.0]]), annotation([[3.0, 4.0], [1.0, 0.0]])
    assert [telemetry.measure(scores, LENGTHS)["drift"] for scores in (early, late, early)] == [0, 0, 0.25]
    assert telemetry.measure(late, LENGTHS)["drift"] == 0.25
    telemetry = LabelTelemetry(first_rollouts=1)
    assert telemetry.measure(early, LENGTHS)["drift"] == 0
    assert telemetry.measure(late, LENGTHS)["drift"] == 0.5


def test_drift_never_mixes_versions() -> None:
    telemetry = LabelTelemetry(first_rollouts=1)
    telemetry.measure(annotation([[0.0, 1.0], [0.0, 1.0]]), LENGTHS)
    learnt = annotation([[10.0, 11.0], [10.0, 11.0]], annotator_version=1)
    assert telemetry.measure(learnt, LENGTHS)["drift"] == 0
    assert telemetry.measure(learnt, LENGTHS)["drift"] == 0


def test_it_goes_on_where_it_was() -> None:
    telemetry = LabelTelemetry(first_rollouts=1)
    telemetry.measure(annotation([[0.0, 1.0], [0.0, 1.0]]), LENGTHS)
    with pytest.warns(UserWarning, match="all the worst"):
        telemetry.warn({"saturated": 0.9})
    resumed = LabelTelemetry(first_rollouts=1)
    resumed.load_state_dict(telemetry.state_dict())
    assert resumed.measure(annotation([[2.0, 3.0], [2.0, 3.0]]), LENGTHS)["drift"] == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resumed.warn({"saturated": 0.9})


@pytest.mark.parametrize(
    ("name", "fine", "beyond", "words"),
    [
        ("flips", 0.3, 0.31, "changes with the order of the responses in 31% of the pairs"),
        ("ties", 0.5, 0.6, "can't tell 60% of the pairs apart"),
        ("invalid_share", 0.1, 0.2, "20% of the responses have no valid score"),
        ("option_mass", 0.8, 0.7, "only 0.70 of its probability"),
        ("saturated", 0.5, 0.75, "In 75% of the prompts"),
        ("length_correlation", -0.6, -0.7, r"correlate at -0.70 \(limit 0.60\)"),
        ("drift", 0.95, 0.96, "distributions are 0.96 apart"),
    ],
)
def test_each_limit_is_said_once_in_words(name: str, fine: float, beyond: float, words: str) -> None:
    telemetry = LabelTelemetry()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        telemetry.warn({name: fine})
    with pytest.warns(UserWarning, match=words) as said:
        telemetry.warn({name: beyond})
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        telemetry.warn({name: beyond})


def test_a_limit_that_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="the limit of flips should be from 0 to 1, got 30"):
        LabelTelemetry(max_flips=30)
    with pytest.raises(UserError, match="first_rollouts should be at least 1"):
        LabelTelemetry(first_rollouts=0)
