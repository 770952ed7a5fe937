"""Points of a curve, and where a picture has them."""

import math
from itertools import pairwise

import pytest

from lit_align.evaluation.reward_kl import COLOURS, curve, drawn, ticks


def test_points_are_where_both_are_known():
    line = curve({0: 0.0, 2: 4.0, 1: 1.0, 3: math.nan, 5: 9.0}, {0: 1.0, 1: 2.0, 2: 2.0, 3: 3.0, 4: 9.0})
    assert (line.rollouts, line.roots, line.scores) == ((0, 1, 2), (0.0, 1.0, 2.0), (1.0, 2.0, 2.0))
    assert line.slope == pytest.approx(0.5)
    assert line.intercept == pytest.approx(7 / 6)


def test_a_single_point_has_no_slope():
    line = curve({0: -0.2, 1: -0.1}, {0: 1.0, 1: 2.0})
    assert (line.roots, line.slope, line.intercept) == ((0.0, 0.0), None, None)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.2, 7.9), (0.001, 0.0012), (5.0, 5.0), (-1e5, 2e4), (0.0, 99.0)])
def test_ticks_are_round_and_enclose(low, high):
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))
    assert float(f"{steps[0]:.1g}") == pytest.approx(steps[0])


def test_more_score_is_higher_and_more_divergence_is_further_right():
    image = drawn({"a": curve({0: 0.0, 1: 1.0}, {0: 0.0, 1: 1.0}), "b": curve({0: 1.0}, {0: 0.0})}, "reward/mean")
    first = tuple(int(COLOURS[0][i : i + 2], 16) for i in (1, 3, 5))
    second = tuple(int(COLOURS[1][i : i + 2], 16) for i in (1, 3, 5))
    assert [image.getpixel(point) for point in ((80, 440), (680, 40), (680, 440))] == [first, first, second]
    assert image.getpixel((380, 240)) == first  # the line between
    assert image.getpixel((380, 340)) == (255, 255, 255)
