"""SAIL's gradient is that of what it minimises, enumerated: answers, labels, routes and the baseline between two rows."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations_with_replacement
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from lit_align.algorithms import DPO, SAIL, AllPairs
from lit_align.functional.preference import dpo_loss
from lit_align.types import AlignmentBatch, Needs, Source, UserError
from tests.algorithms.worlds import LATER, MASK, REFERENCE, REWARDS, TablePolicy, drawn_by, gradient, make_batch, response_table
from tests.tiny import sgd

BETA = 0.5
GIVEN = (1, 3)  # the data's answers to the prompt, the better one first
MIX = {Source.RELABEL: 0.2, Source.FRESH_SELF: 0.25, Source.FRESH_ANNOTATED: 0.35, Source.FIXED: 0.2}
OWN = (Source.RELABEL, Source.FRESH_SELF)  # who has a label of the policy's: the uniform of others should not matter
NOTHING = {"relabel_weight": 0.0, "self_weight": 0.0, "annotated_weight": 0.0}
WEIGHTS = {"relabel_weight": 0.3, "self_weight": 0.8, "annotated_weight": 0.6}


def make(**options: Any) -> SAIL:
    """Away from its reference."""
    module = SAIL(TablePolicy(REFERENCE), **({"beta": BETA, "optimizer": sgd()} | options))
    assert isinstance(module.policy, TablePolicy)
    module.policy.become(LATER)
    return module


def table_of(module: SAIL) -> Tensor:
    assert isinstance(module.policy, TablePolicy)
    return response_table(module.policy)


@dataclass(frozen=True)
class Row:
    """One thing that can happen to prompt 0. The first answer has won if ``first``, by the score or by the uniform."""

    source: Source
    answers: tuple[int, int]
    first: bool
    chance: float


def rows(module: SAIL) -> Iterator[Row]:
    """All of them; answers in either order are one."""
    chances, logps = table_of(module).exp()[0].tolist(), table_of(module).detach()[0] - REFERENCE[0].log()
    yield Row(Source.FIXED, GIVEN, True, MIX[Source.FIXED])
    pairs = [(Source.RELABEL, GIVEN, MIX[Source.RELABEL])]
    for i, j in combinations_with_replacement(range(len(MASK)), 2):
        drawn = chances[i] * chances[j] * (1 if i == j else 2)
        pairs += [(source, (i, j), MIX[source] * drawn) for source in (Source.FRESH_SELF, Source.FRESH_ANNOTATED)]
    for source, (i, j), chance in pairs:
        gap = REWARDS[0, i] - REWARDS[0, j] if source == Source.FRESH_ANNOTATED else BETA * (logps[i] - logps[j])
        wins = float(gap.sigmoid())
        yield from (Row(source, (i, j), True, chance * wins), Row(source, (i, j), False, chance * (1 - wins)))


def batch_of(module: SAIL, drawn: list[Row]) -> AlignmentBatch:
    """These rows as one optimizer step, prepared."""
    scores = torch.tensor([[1.0, 0.0] if row.first or row.source == Source.RELABEL else [0.0, 1.0] for row in drawn], dtype=torch.float64)
    own = torch.tensor([row.source == Source.FRESH_SELF for row in drawn])
    batch = drawn_by(
        module,
        torch.zeros(len(drawn), dtype=torch.long),
        torch.tensor([row.answers for row in drawn]),
        scores=scores.where(~own.unsqueeze(-1), 0.0),
        source=torch.tensor([row.source for row in drawn]),
        uniforms=torch.tensor([0.0 if row.first and row.source in OWN else 1.0 for row in drawn], dtype=torch.float64),
    )
    return module.prepare(batch)[0]


def loss_of(module: SAIL, batch: AlignmentBatch) -> Tensor:
    """The mean over its pairs."""
    assert batch.pairs is not None
    losses, _ = module.objective(batch, module.policy(batch))
    chosen = ~batch.pairs.isnan()
    return losses.where(chosen, 0.0).sum() / chosen.sum()


def enumerated(module: SAIL) -> Tensor:
    """E[-log sigma(beta h)] over routes, answers and labels. Of what a weight is on, that share of the law moves with the policy."""

    def moving(law: Tensor, weight: float) -> Tensor:
        return weight * law + (1 - weight) * law.detach()

    logps = table_of(module)[0]
    values = logps - REFERENCE[0].log()
    margins = values.unsqueeze(-1) - values  # [R, R]
    win, lose, own = dpo_loss(margins, beta=BETA), dpo_loss(-margins, beta=BETA), (BETA * margins).sigmoid()
    answers = (logps.unsqueeze(-1) + logps).exp()
    oracle = (REWARDS[0].unsqueeze(-1) - REWARDS[0]).sigmoid()
    relabel, self_, annotated = WEIGHTS.values()
    of_self = moving(answers * own, self_) * win + moving(answers * (1 - own), self_) * lose
    of_oracle = moving(answers, annotated) * (oracle * win + (1 - oracle) * lose)
    of_data = (moving(own, relabel) * win + moving(1 - own, relabel) * lose)[GIVEN]
    total = MIX[Source.FIXED] * win[GIVEN] + MIX[Source.RELABEL] * of_data
    return total + MIX[Source.FRESH_SELF] * of_self.sum() + MIX[Source.FRESH_ANNOTATED] * of_oracle.sum()


def test_the_gradient_of_one_row_is_that_of_the_enumerated_objective() -> None:
    module = make(**WEIGHTS)
    outcomes = list(rows(module))
    assert sum(row.chance for row in outcomes) == pytest.approx(1, abs=1e-12)
    expected = gradient(module, enumerated(module))
    found = gradient(module, sum((row.chance * loss_of(module, batch_of(module, [row])) for row in outcomes), torch.zeros(())))
    assert expected.abs().max() > 1e-2
    assert_close(found, expected, atol=1e-9, rtol=0)


def test_the_gradient_of_two_rows_too_each_the_baseline_of_the_other() -> None:
    module = make(**WEIGHTS)
    outcomes = list(rows(module))
    everything, steps = batch_of(module, outcomes), list(combinations_with_replacement(range(len(outcomes)), 2))
    chances = [outcomes[i].chance * outcomes[j].chance * (1 if i == j else 2) for i, j in steps]
    baselines = [module.prepare(everything.rows(torch.tensor(step)))[0].baselines for step in steps]
    measured = torch.stack([each for each in baselines if each is not None]).flatten()
    assert len(measured.unique()) > 10
    batch = replace(everything.rows(torch.tensor(steps).flatten()), baselines=measured)  # of every step, one after the other
    assert batch.pairs is not None
    losses, _ = module.objective(batch, module.policy(batch))
    of_row = losses.where(~batch.pairs.isnan(), 0.0).sum((-1, -2))
    weights = torch.tensor(chances, dtype=torch.float64).repeat_interleave(2) / 2
    assert_close(gradient(module, (weights * of_row).sum()), gradient(module, enumerated(module)), atol=1e-9, rtol=0)


def test_a_fresh_row_is_measured_from_the_others_that_are_fresh() -> None:
    module = make()
    drawn = [
        Row(Source.FRESH_SELF, (0, 1), True, 1),
        Row(Source.FIXED, GIVEN, True, 1),
        Row(Source.FRESH_ANNOTATED, (2, 4), False, 1),
        Row(Source.FRESH_SELF, (3, 3), False, 1),
    ]
    batch = batch_of(module, drawn)
    losses = [float(loss_of(make(**NOTHING), batch_of(module, [row])).detach()) for row in drawn]
    fresh = [losses[0], losses[2], losses[3]]
    expected = [(sum(fresh) - loss) / 2 if loss in fresh else sum(fresh) / 3 for loss in losses]
    assert losses[3] == pytest.approx(math.log(2)), "two of the same are a pair of fresh rows: the law has them"
    assert batch.baselines is not None
    assert_close(batch.baselines, torch.tensor(expected, dtype=torch.float64))


def steps(module: Any, batch: AlignmentBatch) -> tuple[Tensor, Tensor]:
    """Loss and gradient."""
    batch, _ = module.prepare(batch)
    losses, _ = module.objective(batch, module.policy(batch))
    loss = losses.where(~batch.pairs.isnan(), 0.0).sum()
    return loss, gradient(module, loss)


@pytest.mark.parametrize("sampled", [True, False])
def test_without_weights_or_without_fresh_rows_it_is_dpo_to_the_bit(sampled: bool) -> None:
    dpo = DPO(TablePolicy(REFERENCE), beta=BETA, pairing=AllPairs(), optimizer=sgd())
    assert isinstance(dpo.policy, TablePolicy)
    dpo.policy.become(LATER)
    module = make(**(NOTHING if sampled else {}))
    prompts, responses = torch.tensor([0, 1, 0]), torch.tensor([[0, 1, 2], [2, 3, 4], [1, 4, 3]])
    batch = drawn_by(dpo, prompts, responses) if sampled else make_batch(prompts, responses, reference_logps=None)
    if not sampled:
        batch = replace(batch, reference_logps=dpo.policy.make_reference().token_logps(batch))
    for ours, theirs in zip(steps(module, batch), steps(dpo, batch), strict=True):
        assert torch.equal(ours, theirs)
    assert steps(dpo, batch)[1].abs().max() > 1e-3


def test_a_judges_preferences_are_labels_too() -> None:
    module, nan = make(), math.nan
    told = torch.tensor([[[nan, 0.2], [0.8, nan]], [[nan, 0.5], [0.5, nan]]], dtype=torch.float64)
    batch, _ = module.prepare(drawn_by(module, torch.tensor([0, 1]), torch.tensor([[0, 1], [0, 1]]), preferences=told))
    assert batch.pairs is not None
    assert (~batch.pairs.isnan()).nonzero().tolist() == [[0, 1, 0]]


def kl_by_hand(module: SAIL, answers: tuple[int, ...]) -> Tensor:
    """``KL(pi_ref || pi)`` of the next token, summed over the states that these answers to prompt 0 go through, mean over them."""
    policy = module.policy
    assert isinstance(policy, TablePolicy)
    start = TablePolicy(REFERENCE)

    def kl(theirs: Tensor, ours: Tensor) -> Tensor:
        p = theirs.detach().softmax(-1)
        return (p * (p.log() - ours.log_softmax(-1))).sum()

    total = torch.zeros((), dtype=torch.float64)
    for answer in answers:
        total = total + kl(start.first[0], policy.first[0])
        if MASK[answer, 1]:
            first = (answer - 1) // 2
            total = total + kl(start.second[0, first], policy.second[0, first])
    return total / len(answers)


@pytest.mark.parametrize("answers", [GIVEN, (0, 4), (2, 3)])
def test_the_price_is_of_the_exact_divergence_at_the_states_of_the_answers(answers: tuple[int, int]) -> None:
    """Of both answers, chosen and rejected, in the reference's direction; the states are given."""
    priced, free = make(reference_kl=0.7), make()
    row = Row(Source.FIXED, answers, True, 1)
    batch = batch_of(priced, [row])
    priced._reference = priced.policy.make_reference()
    losses, diagnostics = priced.objective(batch, priced._read(batch))
    by_hand = kl_by_hand(priced, answers)
    assert_close(losses[0, 0, 1] - loss_of(free, batch), 0.7 * by_hand)
    assert diagnostics["kl/from_reference"][0, 0, 1] == pytest.approx(float(by_hand.detach()))
    expected = gradient(priced, 0.7 * by_hand) + gradient(free, loss_of(free, batch))
    assert_close(gradient(priced, losses[0, 0, 1]), expected)


def test_at_the_reference_the_price_is_nothing_and_pulls_nowhere() -> None:
    module = make(reference_kl=1.0)
    assert isinstance(module.policy, TablePolicy)
    module.policy.become(REFERENCE)
    module._reference = module.policy.make_reference()
    output = module._read(batch_of(module, [Row(Source.FIXED, GIVEN, True, 1)]))
    assert output.kl is not None
    assert output.kl.abs().max() < 1e-15
    assert gradient(module, output.kl.sum()).abs().max() < 1e-15


def test_what_it_needs() -> None:
    assert make().needs == Needs(reference=True, responses=2, on_policy=True, self_labels=True)
    assert make(**NOTHING).needs == Needs(reference=True, responses=2, self_labels=True)
    assert make(reference_kl=1e-3).needs.kl == "reference_policy"


@pytest.mark.parametrize("name", ["beta", "relabel_weight", "self_weight", "annotated_weight", "reference_kl"])
def test_a_price_of_the_wrong_sign_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"{name} should be a number"):
        make(**{name: -0.1})
