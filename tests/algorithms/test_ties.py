"""Where two algorithms are one: to the last digit on any rollout, under the conditions that each name says."""

import math

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import (
    DAR,
    GRPO,
    RLOO,
    ClippedWeights,
    DARPolicyGradient,
    DARRegression,
    FixedScale,
    GroupWeights,
    IterativeSFT,
    ReinforcePP,
    SumOver,
    group_centred,
    leave_one_out,
)
from lit_align.algorithms.reduction import counted
from lit_align.functional import response_logps
from tests.algorithms.worlds import REFERENCE, SAMPLING, TablePolicy, drawn_by, gradient

PROMPTS = torch.tensor([0, 1, 1, 0])
RESPONSES = torch.tensor([[0, 1, 4], [2, 4, 0], [3, 1, 4], [4, 3, 1]])  # of a group, rewards differ and none is the mean


def step(algorithm, responses=RESPONSES, *, valid=None, scores=None, **options):
    """The gradient of an optimizer step on this rollout, drawn by ``SAMPLING``; and the batch."""
    module = algorithm(TablePolicy(REFERENCE), **options)
    module.policy.become(SAMPLING)
    known = {name: value for name, value in (("valid", valid), ("scores", scores)) if value is not None}
    batch, _ = module.prepare(drawn_by(module, PROMPTS, responses, **known))
    losses, _ = module.objective(batch, module.policy(batch))
    which = counted(losses, batch)
    return gradient(module, losses.where(which, 0.0).sum() / which.sum()), batch


@pytest.mark.parametrize("k", [2, 3])
def test_grpo_without_deviation_length_and_divergence_is_rloo_of_weaker_rewards(k):
    rloo, _ = step(RLOO, RESPONSES[:, :k], beta=0.0)
    grpo, _ = step(GRPO, RESPONSES[:, :k], advantage=group_centred, normaliser=SumOver(1.0), beta=0.0)
    assert rloo.abs().max() > 1e-2
    assert_close(grpo, rloo * (k - 1) / k)
    assert_close(step(GRPO, RESPONSES[:, :k], advantage=leave_one_out, normaliser=SumOver(1.0), beta=0.0)[0], rloo)


def test_divergence_or_length_in_the_loss_part_them():
    rloo, _ = step(RLOO, beta=0.3)
    for options in ({"normaliser": SumOver(1.0), "beta": 0.3}, {"beta": 0.0}):
        grpo, _ = step(GRPO, advantage=leave_one_out, **options)
        assert (grpo - rloo).norm() > 0.1 * rloo.norm()


def test_reinforce_pp_without_whitening_and_divergence_is_reinforce_up_to_a_constant():
    found, batch = step(ReinforcePP, beta=0.0, whiten=False)
    module = ReinforcePP(TablePolicy(SAMPLING))
    logps = response_logps(module.policy(batch).token_logps, batch.loss_mask)
    reinforce = gradient(module, -(batch.scores * logps).sum())
    assert reinforce.abs().max() > 1e-2
    assert_close(found * batch.loss_mask.sum(), reinforce)


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(0.3, 0.2), (0.0, 0.5), (0.3, 0.0)])
def test_the_first_step_of_dar_by_regression_is_rloos_over_tau(alpha, beta, k):
    regression, _ = step(DARRegression, RESPONSES[:, :k], alpha=alpha, beta=beta, scale=FixedScale())
    rloo, _ = step(RLOO, RESPONSES[:, :k], beta=alpha)
    assert_close(regression, rloo / (alpha + beta))


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_the_first_step_of_dars_policy_gradient_is_rloos(beta):
    assert_close(step(DARPolicyGradient, alpha=0.3, beta=beta, scale=FixedScale())[0], step(RLOO, beta=0.3)[0])


def test_dar_normalised_inside_the_group_tends_to_the_best_of_k():
    """Exactly, where one is the best."""
    tau = 1e-4
    dar, _ = step(DAR, alpha=tau / 10, beta=tau, weighting=GroupWeights(), scale=FixedScale())
    assert_close(dar, step(IterativeSFT)[0], atol=1e-15, rtol=1e-12)


def test_clipped_dar_tends_to_filtered_sft_at_the_groups_mean():
    """Every response above it at the ceiling, every other at nothing."""
    tau, ceiling = 1e-4, 5.0
    dar, batch = step(DAR, alpha=tau / 10, beta=tau, weighting=ClippedWeights(ceiling), scale=FixedScale())
    above = batch.scores > batch.scores.mean(-1, keepdim=True)
    assert_close(batch.weights, ceiling * above.double())
    filtered, chosen = step(IterativeSFT, select=lambda scores, valid: valid & (group_centred(scores, valid) > 0))
    assert torch.equal(chosen.valid, above)
    assert 4 < above.sum() < 8  # more than the best of each, less than all
    assert_close(dar * above.numel(), filtered * ceiling * above.sum())


def test_unclipped_dar_tends_to_one_response_that_takes_it_all():
    _, batch = step(DAR, alpha=1e-3, beta=1e-2, weighting=ClippedWeights(math.inf), scale=FixedScale())
    assert batch.weights.max() / batch.weights.sum() > 0.99


GROUP = {
    "rloo": (RLOO, {"beta": 0.3}),
    "grpo": (GRPO, {}),
    "reinforce_pp": (ReinforcePP, {"baseline": group_centred}),
    "dar_regression": (DARRegression, {"scale": FixedScale()}),
    "dar_policy_gradient": (DARPolicyGradient, {"scale": FixedScale()}),
    "iterative_sft": (IterativeSFT, {}),
}


@pytest.mark.parametrize("name", GROUP)
def test_a_missing_sibling_is_as_if_it_had_never_been_drawn(name):
    """Of three, one is not valid, whatever it is and was scored; alone, the last group says nothing."""
    algorithm, options = GROUP[name]
    valid = torch.tensor([[True, True, False]]).repeat(4, 1)
    valid[3] = torch.tensor([True, False, False])
    gradients = []
    for stranger, score in ((2, 0.0), (3, 1e3)):
        scores = torch.tensor([[0.3, -1.0, score], [2.0, 0.5, score], [0.0, 0.1, score], [7.0, score, score]], dtype=torch.float64)
        responses = RESPONSES.where(valid, stranger)
        gradients.append(step(algorithm, responses, valid=valid, scores=scores, **options)[0])
    pair = valid.clone()[:, :2]
    pair[3] = False
    gradients.append(step(algorithm, RESPONSES[:, :2], valid=pair, scores=scores[:, :2], **options)[0])
    assert gradients[0].abs().max() > 1e-2
    assert_close(gradients[0], gradients[1])
    assert_close(gradients[0], gradients[2])
