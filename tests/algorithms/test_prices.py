"""A price that would turn an objective round is refused, by its name in a YAML."""

import math
from typing import Any

import pytest

from lit_align.algorithms import DPO, GRPO, IPO, KTO, ORPO, RLOO, AlignmentModule, ReinforcePP, SimPO, SLiC
from lit_align.types import UserError
from tests.algorithms.worlds import REFERENCE, TablePolicy

POSITIVE = [(DPO, "beta"), (IPO, "beta"), (SLiC, "beta"), (SimPO, "beta"), (KTO, "beta")]
FREE = [(DPO, "nll"), (ORPO, "odds"), (GRPO, "beta"), (RLOO, "beta"), (ReinforcePP, "beta")]


def made(algorithm: type[AlignmentModule], name: str, value: float) -> Any:
    options: dict[str, Any] = {name: value}
    return algorithm(TablePolicy(REFERENCE), **options)


@pytest.mark.parametrize("value", [-0.1, math.nan, 0.0])
@pytest.mark.parametrize(("algorithm", "name"), POSITIVE)
def test_a_price_that_divides_is_positive(algorithm: type[AlignmentModule], name: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"{name} should be a number above 0, got .*model\.init_args\.{name}\."):
        made(algorithm, name, value)


@pytest.mark.parametrize(("algorithm", "name"), FREE)
def test_a_price_of_nothing_is_allowed_and_a_negative_one_is_not(algorithm: type[AlignmentModule], name: str) -> None:
    assert getattr(made(algorithm, name, 0.0), name) == 0.0
    with pytest.raises(UserError, match=rf"{name} should be a number of at least 0, got -0.1"):
        made(algorithm, name, -0.1)
