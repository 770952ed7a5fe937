"""Online IPO ends where no reply of the judge could improve the policy: at the regularised Nash equilibrium."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import IPO, AllPairs
from tests.algorithms.descent import BEATS, judged, pull, settled
from tests.algorithms.worlds import REFERENCE, STARTS, TablePolicy, drawn_by, gradient, normalised

BETA = 0.4


def beats(policy):
    """P(y beats a response of the policy), ``[P, R]``."""
    return (BEATS * policy.unsqueeze(-2)).sum(-1)


def regularised_nash():
    """The policy that is its own best reply at a price of ``BETA`` per nat: pi_ref exp(P(y beats pi) / beta), by iteration."""
    policy = REFERENCE
    for _ in range(500):
        policy = normalised((policy.log() + REFERENCE.log() + beats(policy) / BETA) / 2)
    return policy


def test_no_reward_explains_the_judge():
    """What beats what goes round in a circle, to every prompt."""
    assert_close(BEATS + BEATS.mT, torch.ones_like(BEATS))
    for prompt in (BEATS > 0.5).double():
        assert prompt.matrix_power(3).trace() > 0


def test_nothing_beats_the_nash_policy_by_more_than_it_costs():
    nash = regularised_nash()
    generator = torch.Generator().manual_seed(0)
    gain = BETA * (nash / REFERENCE).log() - beats(nash)
    assert_close(gain, gain.mean(-1, keepdim=True).expand_as(gain), atol=1e-12, rtol=0)
    for _ in range(50):
        other = normalised(nash.log() + 0.3 * torch.randn(nash.shape, generator=generator, dtype=nash.dtype))

        def cost(policy):
            return BETA * (policy * (policy / REFERENCE).log()).sum(-1)

        assert ((other * beats(nash)).sum(-1) - cost(other) < 0.5 - cost(nash)).all()


@pytest.mark.parametrize("k", [2, 3])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_online_ipo_ends_at_the_regularised_nash_policy(start, k):
    module = IPO(TablePolicy(REFERENCE), beta=BETA, pairing=AllPairs(soft=True))
    module.policy.become(start)
    assert pull(module, k, judged).abs().max() > 1e-3
    assert_close(settled(module, k, rate=0.15, steps=40, label=judged), regularised_nash(), atol=1e-7, rtol=0)


def test_there_the_expected_gradient_is_nothing():
    module = IPO(TablePolicy(REFERENCE), beta=BETA, pairing=AllPairs(soft=True))
    module.policy.become(regularised_nash())
    assert pull(module, 2, judged).abs().max() < 1e-9


@pytest.mark.parametrize(("beta", "label"), [(0.25, 1.0), (0.25, 0.8), (1.0, 0.6)])
def test_a_pair_rests_at_its_target(beta, label):
    """(2p - 1) / (2 beta) nats above the reference's difference."""
    module = IPO(TablePolicy(REFERENCE), beta=beta, pairing=AllPairs(soft=True))
    p = torch.tensor([[[torch.nan, label], [1 - label, torch.nan]]], dtype=torch.float64)
    batch, _ = module.prepare(drawn_by(module, torch.tensor([0]), torch.tensor([[2, 3]]), preferences=p))
    margin = torch.tensor([0.0, 0.0, (2 * label - 1) / (2 * beta), 0.0, 0.0], dtype=torch.float64)
    for size, least, most in ((1.0, 0.0, 1e-9), (0.5, 1e-2, 10.0)):
        module.policy.become(normalised(REFERENCE.log() + size * margin))
        losses, _ = module.objective(batch, module.policy(batch))
        assert least <= gradient(module, losses[0, 0, 1]).abs().max() < most
