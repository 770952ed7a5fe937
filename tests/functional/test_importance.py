"""A sample of another distribution counts for what it would be worth here, up to a ceiling, and is no way back into the policy."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional.importance import truncated_ratio

POLICY, DRAWN = torch.tensor([0.5, 0.3, 0.2]).double(), torch.tensor([0.2, 0.2, 0.6]).double()
VALUES = torch.tensor([1.0, -2.0, 5.0]).double()


def test_without_a_ceiling_an_expectation_is_the_policys():
    factors = truncated_ratio(POLICY.log(), DRAWN.log())
    assert_close((DRAWN * factors * VALUES).sum(), (POLICY * VALUES).sum())


@pytest.mark.parametrize("ceiling", [0.5, 1.0, 2.0])
def test_a_ceiling_cuts_the_largest(ceiling):
    assert_close(truncated_ratio(POLICY.log(), DRAWN.log(), ceiling=ceiling), (POLICY / DRAWN).clamp(max=ceiling))


def test_it_is_a_number_to_the_gradient():
    logps = POLICY.log().requires_grad_()
    drawn = DRAWN.log().requires_grad_()
    assert not truncated_ratio(logps, drawn, ceiling=2.0).requires_grad


def test_ratios_of_any_size_are_safe_and_those_of_bfloat16_are_float32():
    factors = truncated_ratio(
        torch.tensor([-1.0, -900.0], dtype=torch.bfloat16), torch.tensor([-900.0, -1.0], dtype=torch.bfloat16), ceiling=3.0
    )
    assert_close(factors, torch.tensor([3.0, 0.0]))


@pytest.mark.parametrize("ceiling", [0.0, -1.0, float("nan")])
def test_a_ceiling_is_positive(ceiling):
    with pytest.raises(ValueError, match="ceiling must be positive"):
        truncated_ratio(POLICY.log(), DRAWN.log(), ceiling=ceiling)
