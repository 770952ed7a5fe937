"""Responses of another engine: with its factor a loss is the one of the policy's own, exactly in expectation."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import DPO, RLOO, AlignmentModule
from lit_align.algorithms.mismatch import LARGE, corrected, mismatch, warning, with_engine_factors
from lit_align.types import AlignmentBatch
from tests.algorithms.worlds import (
    LATER,
    MASK,
    REFERENCE,
    REWARDS,
    SAMPLING,
    Groups,
    TablePolicy,
    gradient,
    make_batch,
    response_table,
    value,
)
from tests.tiny import make_trainer

pytestmark = pytest.mark.filterwarnings("ignore:(?s).*This is said once, see engine/")

BETA = 0.5
ENGINE = TablePolicy(SAMPLING)


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    return make_trainer(tmp_path_factory.mktemp("run"))


def drawn_by_engine(module: AlignmentModule, trainer, ceiling: float = math.inf, k: int = 2) -> tuple[AlignmentBatch, torch.Tensor]:
    """Every group that the engine can draw, taken through the rollout phase, and how likely each is."""
    groups = Groups.of(ENGINE, k)
    batch = make_batch(groups.prompts, groups.responses)
    said = ENGINE(batch).token_logps.detach().where(batch.response_mask, 0.0)
    batch = replace(batch, sampling_logps=said, engine_logps=said, max_engine_factor=ceiling)
    module._trainer = trainer
    prepared, _ = module.prepare_rollout(batch, module.needs, 4)
    return prepared, groups.probabilities


def rloo() -> RLOO:
    """Far from its reference, and from the engine."""
    module = RLOO(TablePolicy(REFERENCE), beta=BETA)
    module.policy.become(LATER)
    return module


def pull(module: RLOO, batch: AlignmentBatch, chances: torch.Tensor) -> torch.Tensor:
    """The gradient of a training step in which every group counts as often as it is drawn, of each prompt half."""
    assert batch.advantages is not None
    weighted = replace(batch, advantages=batch.advantages * chances.unsqueeze(-1), response_normaliser=torch.tensor(4.0))
    return gradient(module, module.training_step(weighted, 0)["loss"])


def test_the_expected_gradient_is_that_of_the_policys_own_samples(trainer):
    module = rloo()
    exact = gradient(module, -value(module.policy, BETA))
    batch, chances = drawn_by_engine(module, trainer)
    assert_close(pull(module, batch, chances), exact, atol=1e-12, rtol=0)
    biased = pull(module, replace(batch, engine_factors=None), chances)
    assert (biased - exact).norm() > 0.2 * exact.norm(), "and without the factor it is another one"


@pytest.mark.parametrize("ceiling", [0.5, 1.0, 1.7])
def test_a_ceiling_cuts_what_the_engine_draws_too_rarely(ceiling, trainer):
    module = rloo()
    batch, chances = drawn_by_engine(module, trainer, ceiling)
    factors = (LATER / SAMPLING).clamp(max=ceiling)
    assert 0 < (ceiling < LATER / SAMPLING).double().mean() < 1
    logps = response_table(module.policy)
    rewards = REWARDS - BETA * (LATER.log() - REFERENCE.log())
    centred = rewards - (SAMPLING * rewards).sum(-1, keepdim=True)
    expected = gradient(module, -(SAMPLING * factors * centred * logps).sum(-1).mean())
    assert_close(pull(module, batch, chances), expected, atol=1e-12, rtol=0)


def test_log_probs_are_the_policys_and_the_engines_stay_beside_them(trainer):
    module = rloo()
    batch, _ = drawn_by_engine(module, trainer)
    mask = batch.response_mask
    assert_close(batch.sampling_logps, module.policy(batch).token_logps.detach().where(mask, 0.0))
    assert_close(batch.engine_logps, ENGINE(batch).token_logps.detach().where(mask, 0.0))


def test_every_token_of_a_response_has_its_factor_and_a_pair_has_none(trainer):
    batch, _ = drawn_by_engine(rloo(), trainer)
    assert batch.engine_factors is not None
    tokens = torch.ones(batch.response_mask.shape, dtype=torch.float64)
    assert torch.equal(corrected(tokens, batch), tokens * batch.engine_factors.unsqueeze(-1))
    pairs = torch.full((len(batch.scores), 2, 2), 0.5)
    losses = torch.ones_like(pairs)
    assert corrected(losses, replace(batch, pairs=pairs)) is losses
    assert corrected(tokens, replace(batch, engine_factors=None)) is tokens


def test_losses_of_pairs_are_reported_only(trainer):
    steps = []
    for engine in (True, False):
        module = DPO(TablePolicy(REFERENCE))
        module.policy.become(LATER)
        batch, _ = drawn_by_engine(module, trainer)
        assert "engine/factor_mean" in module._pending
        batch = replace(batch, pair_normaliser=torch.tensor(8.0), engine_factors=batch.engine_factors if engine else None)
        steps.append(gradient(module, module.training_step(batch, 0)["loss"]))
    assert steps[0].abs().max() > 1e-3
    assert torch.equal(*steps)


def test_what_is_measured_is_the_difference():
    """Of three responses, by hand: of 1, 2 and 1 tokens."""
    own = torch.tensor([[[-1.0, 0.0]], [[-2.0, -1.0]], [[-0.2, 0.0]]])
    batch = make_batch(torch.tensor([0, 1, 1]), torch.tensor([[0], [3], [0]]), sampling_logps=own)
    engine = torch.tensor([[[-1.5, 9.0]], [[-1.0, -1.25]], [[0.0, 9.0]]])  # where there is no token, no number counts
    batch = replace(batch, engine_logps=engine, max_engine_factor=1.25, engine_staleness=2)
    differences = [0.5, -1.0, 0.25, -0.2]
    found = mismatch(with_engine_factors(batch))
    assert MASK[[0, 3]].tolist() == [[True, False], [True, True]]
    assert float(found["engine/logp_difference"]) == pytest.approx(1.95 / 4)
    assert float(found["engine/kl"]) == pytest.approx(sum(math.exp(d) - 1 - d for d in differences) / 4)
    assert float(found["engine/factor_mean"]) == pytest.approx((1.25 + math.exp(-0.75) + math.exp(-0.2)) / 3)
    assert float(found["engine/clipped_fraction"]) == pytest.approx(1 / 3)
    assert float(found["engine/staleness"]) == 2
    assert mismatch(replace(batch, engine_logps=None)) == {}


@pytest.mark.parametrize(("stale", "said"), [(0.0, "model folder, its temperature"), (1.0, "synchronise_every")])
def test_only_a_large_mismatch_is_told_in_words(stale, said):
    measured = {"engine/logp_difference": LARGE * 1.01, "engine/clipped_fraction": 0.25, "engine/staleness": stale}
    words = warning({name: torch.tensor(number) for name, number in measured.items()})
    assert words is not None
    assert said in words
    assert "25% of the responses" in words
    assert warning({name: torch.tensor(number * 0.9) for name, number in measured.items()}) is None
    assert warning({}) is None


def test_fixed_rows_of_a_mixture_count_once():
    """The data's answers have no log-probs of either, and are no part of what is measured."""
    batch = make_batch(torch.tensor([0, 1]), torch.tensor([[1], [3]]), sampling_logps=torch.zeros(2, 1, 2), source=torch.tensor([0, 3]))
    engine = torch.tensor([[[0.0, 0.0]], [[-1.0, -1.0]]])
    batch = with_engine_factors(replace(batch, engine_logps=engine, max_engine_factor=100.0))
    assert_close(batch.engine_factors, torch.tensor([[1.0], [math.exp(2)]]))
    assert float(mismatch(batch)["engine/factor_mean"]) == pytest.approx(math.exp(2))
    assert float(mismatch(batch)["engine/logp_difference"]) == 1.0
