"""Where TRL computes the same thing: advantages and losses within 1e-4, gradients within 1e-4 of their length."""

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from lit_align.algorithms import (
    CISPO,
    DPO,
    GRPO,
    IPO,
    RLOO,
    AlphaDivergence,
    Clip,
    SequenceClip,
    SLiC,
    SumOver,
    forward_kl,
    group_centred,
    jensen_shannon,
    token_mean,
)
from lit_align.types import Policy
from tests.peer.conftest import Distance
from tests.peer.ours import LONGEST, Run, Step
from tests.tiny import sgd

TOLERANCE = 1e-4

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]  # its libraries warn of each other

Agree = Callable[..., None]


@pytest.fixture
def agree(distance: Distance, request: pytest.FixtureRequest) -> Agree:
    """That ours and theirs do, and a line that says how closely (pytest -rP shows it)."""

    def check(step: Step, theirs: Any, advantages: Tensor | None = None, loss: bool = True) -> None:
        found = {"gradient": distance(step.gradient, theirs.gradient)}
        if loss:
            found["loss"] = abs(step.loss - theirs.loss)
        if advantages is not None:
            found["advantages"] = float((advantages - theirs.advantages).abs().max())
        print(request.node.name, *(f"{name} {value:.1e}" for name, value in found.items()))
        assert max(found.values()) < TOLERANCE

    return check


@pytest.mark.parametrize(("algorithm", "loss_type"), [(DPO, "sigmoid"), (IPO, "ipo")])
def test_online_preference_losses(algorithm: type[DPO | IPO], loss_type: str, ours: Callable[..., Run], peer: Any, agree: Agree) -> None:
    run = ours(lambda policy: algorithm(policy, beta=0.1, optimizer=sgd(0.0)), k=2)
    assert not run.batch.pairs.isnan().all((-1, -2)).any(), "no ties"
    agree(run.steps[0], peer(run).online_dpo(beta=0.1, loss_type=loss_type))


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        (lambda policy: DPO(policy, beta=0.1, optimizer=sgd(0.0)), {}),
        (lambda policy: SLiC(policy, beta=1.0, optimizer=sgd(0.0)), {"loss_type": ["hinge"], "beta": 1.0}),  # some pairs are settled
        (lambda policy: DPO(policy, beta=0.1, link=forward_kl, optimizer=sgd(0.0)), {"f_divergence_type": "forward_kl"}),
        (lambda policy: DPO(policy, beta=0.1, link=jensen_shannon, optimizer=sgd(0.0)), {"f_divergence_type": "js_divergence"}),
        (
            lambda policy: DPO(policy, beta=0.1, link=AlphaDivergence(0.3), optimizer=sgd(0.0)),
            {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        ),
    ],
    ids=["dpo", "slic", "forward_kl", "jensen_shannon", "alpha"],
)
def test_offline_preference_losses(
    algorithm: Callable[[Policy], Any], options: dict[str, Any], ours: Callable[..., Run], peer: Any, agree: Agree
) -> None:
    run = ours(algorithm, k=2)
    agree(run.steps[0], peer(run).dpo(**({"beta": 0.1} | options)))


def test_rloo(ours: Callable[..., Run], peer: Any, agree: Agree) -> None:
    """Their loss is of ratios to the policy itself, whose value is 0 whatever the gradient: only that and advantages are compared."""
    run = ours(lambda policy: RLOO(policy, beta=0.05, optimizer=sgd(0.0)), k=4)
    theirs = peer(run).rloo(beta=0.05, normalize_advantages=False)
    agree(run.steps[0], theirs, run.batch.advantages, loss=False)


GROUP = {
    "grpo": (
        lambda policy: GRPO(policy, beta=0.04, optimizer=sgd(1.0)),
        {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    ),
    "dr_grpo": (
        lambda policy: GRPO(policy, advantage=group_centred, normaliser=SumOver(LONGEST), beta=0.0, optimizer=sgd(10.0)),
        {"loss_type": "dr_grpo", "scale_rewards": "none"},
    ),
    "dapo": (
        lambda policy: GRPO(policy, surrogate=Clip(0.2, 0.28), normaliser=token_mean, beta=0.0, optimizer=sgd(1.0)),
        {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    "gspo": (
        lambda policy: GRPO(policy, surrogate=SequenceClip(0.02, 0.03), beta=0.0, optimizer=sgd(0.1)),
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 0.02, "epsilon_high": 0.03},
    ),
    "cispo": (
        lambda policy: GRPO(policy, surrogate=CISPO(high=0.2), normaliser=token_mean, beta=0.0, optimizer=sgd(1.0)),
        {"loss_type": "cispo", "epsilon_high": 1.2},
    ),
}


@pytest.mark.parametrize("name", GROUP)
def test_group_algorithms_on_policy_and_after_a_step(name: str, ours: Callable[..., Run], peer: Any, agree: Agree) -> None:
    """The second step on the same rollout has ratios, and some are clipped."""
    algorithm, options = GROUP[name]
    run = ours(algorithm, k=4, inner_epochs=2)
    assert 0.05 < run.metrics["ratio/clipped_fraction"] < 0.95
    for number, step in enumerate(run.steps):
        theirs = peer(run, step=number).grpo(**({"beta": 0.0} | options))
        agree(step, theirs, run.batch.advantages, loss=name != "cispo")  # where ours differs by what has no gradient
