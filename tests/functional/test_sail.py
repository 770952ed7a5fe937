"""The two terms that a preference loss lacks, against autograd of enumerated expectations."""

import pytest
import torch
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from lit_align.functional.preference import dpo_loss
from lit_align.functional.sail import answer_law_loss, label_law_loss, leave_row_out, own_labels

BETA = 0.7
REFERENCE = torch.tensor([0.3, -0.2, 0.9, 0.1], dtype=torch.float64).log_softmax(-1)
ORACLE = torch.tensor([0.2, 1.1, -0.6, 0.5], dtype=torch.float64)
ORACLE = (ORACLE.unsqueeze(-1) - ORACLE).sigmoid()  # [4, 4]; P(the first wins)


def logits() -> torch.Tensor:
    return torch.tensor([0.8, 0.1, -0.5, 0.4], dtype=torch.float64, requires_grad=True)


def world(theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs of four answers, of every two of them, and their margins."""
    logps = theta.log_softmax(-1)
    values = logps - REFERENCE
    return logps, logps.unsqueeze(-1) + logps, values.unsqueeze(-1) - values


def gradient(loss: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, theta, retain_graph=True)[0]


@pytest.mark.parametrize("baseline", [0.0, 0.9])
def test_fresh_answers_with_an_oracles_labels(baseline: float) -> None:
    """grad E = T1 + T2, whatever the constant baseline."""
    theta = logits()
    _, both, margins = world(theta)
    win, lose = dpo_loss(margins, beta=BETA), dpo_loss(-margins, beta=BETA)
    expected = gradient((both.exp() * (ORACLE * win + (1 - ORACLE) * lose)).sum(), theta)
    theta = logits()
    _, both, margins = world(theta)
    b = torch.tensor(baseline, dtype=torch.float64)
    sampled = torch.zeros((), dtype=torch.float64)
    for label, chance in ((1.0, ORACLE), (-1.0, 1 - ORACLE)):
        losses = dpo_loss(label * margins, beta=BETA)
        sampled = sampled + ((both.exp() * chance).detach() * (losses + answer_law_loss(losses, both, b))).sum()
    assert_close(gradient(sampled, theta), expected, atol=1e-12, rtol=0)
    assert expected.abs().max() > 1e-2


def test_labels_of_the_policys_own() -> None:
    """The plain part has no mean; all of the signal is the square's. For fixed answers it is that of the label's entropy."""
    margins = torch.linspace(-3, 3, 7, dtype=torch.float64, requires_grad=True)
    chance = (BETA * margins).sigmoid()
    both = [(chance, dpo_loss(margins, beta=BETA)), (1 - chance, dpo_loss(-margins, beta=BETA))]
    entropy = sum((p * -p.log()).sum() for p, _ in both)
    plain = sum((p.detach() * loss).sum() for p, loss in both)
    square = sum((p.detach() * label_law_loss(loss)).sum() for p, loss in both)
    assert isinstance(entropy, torch.Tensor)
    assert isinstance(plain, torch.Tensor)
    assert isinstance(square, torch.Tensor)
    assert_close(gradient(plain, margins), torch.zeros_like(margins), atol=1e-12, rtol=0)
    assert_close(gradient(square, margins), gradient(entropy, margins), atol=1e-12, rtol=0)


def test_the_slope_of_a_pair_that_the_policy_labels() -> None:
    """-(1 + rho F) sigma(-m): it turns round where the policy is sure of the opposite."""
    rho = 0.2
    m = torch.tensor([-6.0, -4.99, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    losses = dpo_loss(m, beta=1.0)
    slope = gradient((losses + rho * label_law_loss(losses)).sum(), m)
    assert_close(slope, (-(1 + rho * logsigmoid(m)) * (-m).sigmoid()).detach())
    assert slope[0] > 0
    assert abs(float(slope[1])) < 1e-3
    assert (slope[2:] < 0).all()


def test_a_pair_that_is_wrong_becomes_less_likely() -> None:
    """dL/dlogp = -c F / B > 0 of both answers; with the mean as baseline these add up to nothing."""
    logps = torch.tensor([[-2.0, -3.0], [-1.0, -4.0], [-2.5, -2.0]], dtype=torch.float64, requires_grad=True)
    losses = torch.tensor([0.4, 1.3, 0.7], dtype=torch.float64)
    none = gradient(0.3 * answer_law_loss(losses, logps.sum(-1), torch.zeros(3)).mean(), logps)
    assert_close(none, (0.3 * losses / 3).unsqueeze(-1).expand(3, 2))
    mean = gradient(answer_law_loss(losses, logps.sum(-1), losses.mean()).mean(), logps)
    assert_close(mean.sum(0), torch.zeros(2, dtype=torch.float64))


def test_a_label_is_drawn_under_the_policys_own_law() -> None:
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    for margin in (-2.0, 0.0, 3.0):
        share = own_labels(torch.tensor(margin), uniforms, beta=BETA).double().mean()
        assert float(share) == pytest.approx(float(torch.tensor(BETA * margin).sigmoid()), abs=1e-4)


def test_the_baseline_leaves_out_every_pair_of_the_row() -> None:
    losses = torch.arange(12, dtype=torch.float64).view(3, 2, 2)
    counted = torch.tensor([[[False, True], [True, False]], [[False, True], [False, False]], [[False, False], [False, False]]])
    losses = losses.where(counted, torch.nan)
    assert leave_row_out(losses, counted).tolist() == [5.0, 1.5, (1 + 2 + 5) / 3]
    assert leave_row_out(losses[1:], counted[1:]).tolist() == [0.0, 5.0], "nobody else has one"
    assert not leave_row_out(losses.clone().requires_grad_(), counted).requires_grad
