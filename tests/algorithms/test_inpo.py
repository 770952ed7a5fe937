"""A round of INPO is DAR's theorem for what the judge prefers; its rounds end at the regularised Nash policy."""

import math

import pytest
from torch.testing import assert_close

from lit_align.algorithms import INPO, IPO, AllPairs, ClippedWeights, FixedScale, leave_one_out
from lit_align.types import UserError
from tests.algorithms.descent import BEATS, judged
from tests.algorithms.worlds import REFERENCE, SAMPLING, Groups, TablePolicy, expected_loss, fitted, gradient, make_module, normalised

PRICES = [(0.5, 0.2), (0.5, 0.0), (0.3, 0.3)]
prices = pytest.mark.parametrize(("eta", "tau"), PRICES)


def round_at(now, module, k=2):
    """What the module makes of a rollout of this policy: the groups, and the batch that it trains on."""
    module.policy.become(now)
    groups, options = judged(Groups.of(module.policy, k))
    return groups, expected_loss(module, groups, **options)[2]


def theorem(now, eta, tau):
    """Theorem 4.1 with A(y) = P(y beats pi_t), alpha = tau, beta = eta - tau."""
    advantage = (BEATS * now.unsqueeze(-2)).sum(-1)
    return normalised((tau * REFERENCE.log() + (eta - tau) * now.log() + advantage) / eta)


@prices
@pytest.mark.parametrize("k", [2, 3])
def test_at_the_theorem_the_expected_gradient_is_nothing(eta, tau, k):
    module = INPO(TablePolicy(REFERENCE), eta=eta, tau=tau, pairing=AllPairs(soft=True))
    groups, batch = round_at(SAMPLING, module, k)
    module.policy.become(theorem(SAMPLING, eta, tau))
    assert gradient(module, expected_loss(module, groups, batch)[0]).abs().max() < 1e-9
    module.policy.become(SAMPLING)
    assert gradient(module, expected_loss(module, groups, batch)[0]).abs().max() > 1e-3


def test_a_round_is_one_of_dar():
    """DAR, scored by how often a response beats the policy, gives the policy at which INPO's expected gradient is nothing."""
    module = INPO(TablePolicy(REFERENCE), eta=0.5, tau=0.2, pairing=AllPairs(soft=True))
    groups, batch = round_at(SAMPLING, module)
    dar = make_module(now=SAMPLING, alpha=0.2, beta=0.3, weighting=ClippedWeights(math.inf), baseline=leave_one_out, scale=FixedScale())
    chances = (BEATS * SAMPLING.unsqueeze(-2)).sum(-1)[groups.prompts.unsqueeze(-1), groups.responses]
    module.policy.become(fitted(dar, groups, scores=chances))
    assert gradient(module, expected_loss(module, groups, batch)[0]).abs().max() < 1e-9


def test_with_all_of_the_price_on_the_reference_it_is_ipo():
    gradients = []
    for module in (INPO(TablePolicy(REFERENCE), eta=0.3, tau=0.3), IPO(TablePolicy(REFERENCE), beta=0.3)):
        groups, batch = round_at(SAMPLING, module, 3)
        gradients.append(gradient(module, expected_loss(module, groups, batch)[0]))
    assert gradients[0].abs().max() > 1e-2
    assert_close(gradients[0], gradients[1])


def test_rounds_end_at_the_regularised_nash_policy():
    """Its own best reply at the price tau; eta sets the step."""
    for eta in (0.8, 1.6):
        policy = SAMPLING
        for _ in range(100):
            policy = theorem(policy, eta, 0.4)
        module = INPO(TablePolicy(REFERENCE), eta=eta, tau=0.4, pairing=AllPairs(soft=True))
        groups, batch = round_at(policy, module)
        assert gradient(module, expected_loss(module, groups, batch)[0]).abs().max() < 1e-9
        gain = 0.4 * (policy / REFERENCE).log() - (BEATS * policy.unsqueeze(-2)).sum(-1)
        assert_close(gain, gain.mean(-1, keepdim=True).expand_as(gain), atol=1e-9, rtol=0)


@pytest.mark.parametrize(("eta", "tau"), [(0.0, 0.0), (0.2, 0.3), (0.2, -0.1)])
def test_prices_that_make_no_mixture_are_refused(eta, tau):
    with pytest.raises(UserError, match=rf"got tau = {tau} and eta = {eta}"):
        INPO(TablePolicy(REFERENCE), eta=eta, tau=tau)
