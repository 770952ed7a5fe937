"""Entropy of a choice: its value and gradient, in any chunks, and choices that can't be made."""

import math

import pytest
import torch
from torch.testing import assert_close

import lit_align.functional.entropy as entropy
from lit_align.functional import token_entropy


@pytest.mark.parametrize("rows_at_a_time", [1, 2, 100])
def test_chunks_change_nothing(rows_at_a_time, monkeypatch):
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 5, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(entropy, "CHUNK", rows_at_a_time * 5)
    found = token_entropy(logits, 0.7)
    probabilities = (logits / 0.7).softmax(-1)
    expected = -(probabilities * probabilities.log()).sum(-1)
    assert_close(found, expected)
    weights = torch.randn(2, 3, dtype=torch.float64)
    (one,), (other,) = (torch.autograd.grad((x * weights).sum(), logits) for x in (found, expected))
    assert_close(one, other)


def test_what_cannot_be_drawn_adds_nothing():
    logits = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    found = token_entropy(logits)
    assert found.item() == pytest.approx(math.log(2))
    assert torch.autograd.grad(found.sum(), logits)[0].isfinite().all()
