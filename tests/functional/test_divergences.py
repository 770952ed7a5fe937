"""Estimates of KL against exact sums over a vocabulary, in value and in gradient."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import kl_from_logits, kl_k1, kl_k2, kl_k3

POLICY = torch.tensor([0.5, 0.2, 0.2, 0.1], dtype=torch.float64)
REFERENCE = torch.tensor([0.1, 0.3, 0.2, 0.4], dtype=torch.float64)


def kl(p: torch.Tensor, q: torch.Tensor) -> float:
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p.tolist(), q.tolist(), strict=True))


def gradient(function) -> torch.Tensor:
    """Of ``function(logits)`` at the policy."""
    logits = POLICY.log().requires_grad_()
    return torch.autograd.grad(function(logits), logits)[0]


@pytest.mark.parametrize("estimate", [kl_k1, kl_k3])
def test_k1_and_k3_are_unbiased(estimate):
    assert (POLICY * estimate(POLICY.log(), REFERENCE.log())).sum().item() == pytest.approx(kl(POLICY, REFERENCE), abs=1e-12)


def test_k2_is_half_the_squared_log_ratio():
    assert_close(kl_k2(POLICY.log(), REFERENCE.log()), (POLICY / REFERENCE).log().square() / 2)


def test_k2_is_right_to_second_order_and_not_beyond():
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    for size, tolerance in ((1e-2, 1e-2), (1e-4, 1e-4)):
        near = (POLICY.log() + size * direction).softmax(-1)
        assert (POLICY * kl_k2(POLICY.log(), near.log())).sum().item() == pytest.approx(kl(POLICY, near), rel=2 * tolerance)
    assert (POLICY * kl_k2(POLICY.log(), REFERENCE.log())).sum().item() != pytest.approx(kl(POLICY, REFERENCE), rel=0.05)


@pytest.mark.parametrize("estimate", [kl_k2, kl_k3])
def test_k2_and_k3_are_never_negative_and_zero_at_the_reference(estimate):
    logps = torch.linspace(-30, 0, 301)
    assert (estimate(logps, torch.tensor(-7.0)) >= 0).all()
    assert estimate(logps, logps).tolist() == [0.0] * 301


def test_k1_has_the_sign_of_the_log_ratio():
    assert kl_k1(torch.tensor([-1.0, -3.0]), torch.tensor([-3.0, -1.0])).tolist() == [2.0, -2.0]


def test_k3_keeps_its_digits_near_the_reference():
    actual = kl_k3(torch.tensor(-2.0), torch.tensor(-2.0 + 2**-12))
    assert actual.item() == pytest.approx(2.0**-25, rel=1e-2)


def on_policy(estimate):
    """Expected gradient of an estimate used as a loss: samples are drawn, not differentiated."""
    return gradient(lambda logits: (POLICY * estimate(logits.log_softmax(-1), REFERENCE.log())).sum())


def test_as_a_loss_k1_does_nothing():
    assert_close(on_policy(kl_k1), torch.zeros(4, dtype=torch.float64))


def test_as_a_loss_k2_descends_the_divergence_from_the_reference():
    assert_close(on_policy(kl_k2), gradient(lambda logits: kl_from_logits(logits, REFERENCE.log())))


def test_as_a_loss_k3_descends_the_divergence_of_the_reference():
    assert_close(on_policy(kl_k3), gradient(lambda logits: kl_from_logits(REFERENCE.log(), logits)))
    assert not torch.allclose(on_policy(kl_k3), on_policy(kl_k2), atol=0.05)


def test_exact_divergence_is_the_sum_over_the_vocabulary():
    logits = torch.stack([POLICY.log() + 5, REFERENCE.log()])  # any shift of logits is the same policy
    reference = torch.stack([REFERENCE.log(), POLICY.log() - 300])
    assert kl_from_logits(logits, reference).tolist() == pytest.approx([kl(POLICY, REFERENCE), kl(REFERENCE, POLICY)], abs=1e-12)


def test_exact_divergence_is_zero_only_for_equal_models_in_equal_positions():
    logits = torch.randn(2, 3, 6, 11, generator=torch.Generator().manual_seed(0))
    assert kl_from_logits(logits, logits.clone()).abs().max() == 0
    assert (kl_from_logits(logits[..., 1:, :], logits[..., :-1, :]) > 1e-3).all()


def test_gradient_of_the_exact_divergence():
    log_ratio = POLICY.log() - REFERENCE.log()
    assert_close(gradient(lambda logits: kl_from_logits(logits, REFERENCE.log())), POLICY * (log_ratio - kl(POLICY, REFERENCE)))


def test_divergence_of_the_reference_pulls_towards_its_samples_with_fisher_curvature():
    assert_close(gradient(lambda logits: kl_from_logits(REFERENCE.log(), logits)), POLICY - REFERENCE)
    hessian = torch.autograd.functional.hessian(lambda logits: kl_from_logits(REFERENCE.log(), logits), POLICY.log())
    assert_close(hessian, torch.diag(POLICY) - torch.outer(POLICY, POLICY))


def test_tokens_that_cannot_be_drawn():
    logits = torch.tensor([0.0, 0.0, -math.inf], requires_grad=True)
    divergence = kl_from_logits(logits, torch.tensor([0.0, 0.0, 5.0]))
    divergence.backward()
    assert divergence.item() == pytest.approx(kl(torch.tensor([0.5, 0.5]), torch.tensor([0.5, 0.5])) + math.log((2 + math.e**5) / 2))
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert kl_from_logits(logits.detach(), torch.tensor([0.0, 0.0, -math.inf])).item() == 0.0
    assert kl_from_logits(torch.zeros(3), torch.tensor([0.0, 0.0, -math.inf])).item() == math.inf


def test_low_precision_is_computed_in_float32():
    a, b = torch.randn(2, 50, 100, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert kl_from_logits(a, b).dtype == torch.float32
    assert_close(kl_from_logits(a, b).double(), kl_from_logits(a.double(), b.double()), atol=1e-5, rtol=1e-5)
    for estimate in (kl_k1, kl_k2, kl_k3):
        assert_close(estimate(a, b).double(), estimate(a.double(), b.double()), atol=1e-5, rtol=1e-5)
        assert estimate(a, b.double()).dtype == torch.float64
