"""Agreement of people and judges: against numbers worked out by hand, another library, and judges whose habits are known."""

import json
import math
import random

import pytest
import torch
from torchmetrics.functional.classification import binary_calibration_error, multiclass_cohen_kappa

from lit_align.evaluation.agreement import AgreementReport, Estimate, LabelledPairs, agreement, agreement_by_subset, cohen_kappa, compare
from lit_align.evaluation.agreement.comparison import sign_test
from lit_align.evaluation.agreement.intervals import resampled_sums
from lit_align.evaluation.agreement.pairs import FIRST, SECOND, TIE, UNKNOWN

NAN = math.nan
ORDER_MEASURES = ("accuracy_given", "accuracy_swapped", "accuracy_chosen_first", "accuracy_chosen_second")


def pairs_of(human, verdicts, *, orders=None, lengths=None, soft=False, prompts=None, subsets=()):
    """Human labels as P(the first is better), each of one vote; NaN where nobody voted."""
    votes = [[0, 0, 0] if math.isnan(h) else [int(h == 1), int(h == 0.5), int(h == 0)] for h in human]
    return LabelledPairs(
        prompts=torch.arange(len(human)) if prompts is None else torch.tensor(prompts),
        votes=torch.tensor(votes),
        verdicts=torch.tensor(verdicts, dtype=torch.float64),
        orders=None if orders is None else torch.tensor(orders, dtype=torch.float64),
        lengths=None if lengths is None else torch.tensor(lengths),
        soft=soft,
        subsets=subsets,
    )


def values(report):
    return {name: found.value for name, found in report.measures.items()}


# People


@pytest.mark.parametrize(
    ("votes", "choice"),
    [
        ([2, 0, 1], FIRST),
        ([0, 1, 2], SECOND),
        ([0, 3, 2], TIE),
        ([1, 0, 1], TIE),
        ([2, 2, 1], TIE),  # the lead is shared with tie
        ([1, 1, 1], TIE),
        ([0, 0, 0], UNKNOWN),
    ],
)
def test_most_people_decide_and_a_shared_lead_is_a_tie(votes, choice):
    pairs = LabelledPairs(prompts=torch.tensor([0]), votes=torch.tensor([votes]), verdicts=torch.tensor([1.0]))
    assert pairs.human.tolist() == [choice]


def test_two_people_agree_as_often_as_two_votes_are_the_same():
    votes = torch.tensor([[3, 0, 0], [2, 1, 0], [1, 0, 0], [0, 1, 1]])  # 3 of 3, 1 of 3, nothing to compare, 0 of 1
    pairs = LabelledPairs(prompts=torch.arange(4), votes=votes, verdicts=torch.ones(4, dtype=torch.float64))
    found = agreement(pairs).measures["human_agreement"]
    assert found.value == pytest.approx(4 / 7)
    assert found.n == 3
    single = LabelledPairs(prompts=torch.arange(1), votes=votes[2:3], verdicts=torch.ones(1, dtype=torch.float64))
    assert "human_agreement" not in agreement(single).measures


# Kappa


@pytest.mark.parametrize(
    ("confusion", "kappa"),
    [
        ([[20, 5], [10, 15]], 0.4),  # observed 0.7, by chance 0.5 * 0.6 + 0.5 * 0.4
        ([[45, 15], [25, 15]], (0.60 - 0.54) / 0.46),
        ([[25, 35], [5, 35]], (0.60 - 0.46) / 0.54),  # the same agreement, other habits
        ([[5, 0, 0], [0, 7, 0], [0, 0, 9]], 1.0),
        ([[0, 10], [10, 0]], -1.0),
        ([[6, 4], [3, 2]], 0.0),  # independent
        ([[0, 10], [0, 0]], 0.0),  # always the same, but not the same thing
        ([[10, 5], [0, 0]], 0.0),
    ],
)
def test_kappa_by_hand(confusion, kappa):
    table = torch.tensor(confusion, dtype=torch.float64)
    assert float(cohen_kappa(table)) == pytest.approx(kappa, abs=1e-12)
    assert float(cohen_kappa(table.T)) == pytest.approx(kappa, abs=1e-12)


def test_where_chance_alone_is_perfect_kappa_is_not_defined():
    assert cohen_kappa(torch.tensor([[10.0, 0.0], [0.0, 0.0]])).isnan()
    assert cohen_kappa(torch.zeros(2, 2)).isnan()
    report = agreement(pairs_of([1, 1, 1], [1, 1, 1]))
    assert report.measures["agreement"].value == 1
    assert report.measures["kappa"] == Estimate(None, None, None, 3)


def test_agreement_and_kappa_are_those_of_torchmetrics():
    draw = random.Random(0)
    human = [draw.choice([1, 0.5, 0]) for _ in range(200)]
    ai = [h if draw.random() < 0.6 else draw.choice([1, 0.5, 0]) for h in human]
    found = values(agreement(pairs_of(human, ai), resamples=10))
    classes = [torch.tensor([int(2 * x) for x in side]) for side in (ai, human)]
    assert found["agreement"] == pytest.approx(sum(h == a for h, a in zip(human, ai, strict=True)) / 200)
    assert found["kappa"] == pytest.approx(float(multiclass_cohen_kappa(*classes, num_classes=3)), abs=1e-6)
    decided = (classes[0] != 1) & (classes[1] != 1)
    two = [side[decided] // 2 for side in classes]
    assert found["agreement_without_ties"] == pytest.approx(float((two[0] == two[1]).double().mean()))
    assert found["kappa_without_ties"] == pytest.approx(float(multiclass_cohen_kappa(*two, num_classes=2)), abs=1e-6)


# Ties and what is missing


def test_ties_are_a_choice_with_them_and_left_out_without():
    report = agreement(pairs_of([1, 1, 0.5, 0.5, 0, NAN, 0], [1, 0.5, 0.5, 0, 1, 1, NAN]))
    found = report.measures
    assert (report.pairs, report.unlabelled, report.unjudged) == (5, 1, 1)
    assert (found["agreement"].value, found["agreement"].n) == (pytest.approx(2 / 5), 5)
    assert (found["agreement_without_ties"].value, found["agreement_without_ties"].n) == (pytest.approx(1 / 2), 2)
    assert found["human_ties"].value == pytest.approx(2 / 5)
    assert found["ai_ties"].value == pytest.approx(2 / 5)


@pytest.mark.parametrize(("verdict", "kappa"), [(lambda h: h, 1.0), (lambda h: 1 - h, -1.0)])
def test_a_perfect_and_an_inverted_judge(verdict, kappa):
    human = [1.0, 0.0] * 20
    found = values(agreement(pairs_of(human, [verdict(h) for h in human])))
    assert found["agreement"] == (kappa + 1) / 2
    assert found["kappa"] == found["kappa_without_ties"] == pytest.approx(kappa)


def test_of_random_judges_intervals_hold_the_truth_as_often_as_they_say():
    draw, held = random.Random(0), {"kappa": 0, "agreement": 0}
    for _ in range(100):
        human, ai = ([draw.choice([1.0, 0.0]) for _ in range(150)] for _ in range(2))
        found = agreement(pairs_of(human, ai), resamples=300).measures
        held["kappa"] += found["kappa"].low < 0 < found["kappa"].high
        held["agreement"] += found["agreement"].low < 0.5 < found["agreement"].high
    assert 85 <= min(held.values()) <= max(held.values()) <= 99  # of about 93, as percentiles of a bootstrap are somewhat narrow


def test_a_flip_of_the_two_responses_changes_nothing_but_their_places():
    human, said = [1, 0, 0.5, 1, 0, 0], [[1, 1], [0.2, 0.6], [1, 0], [0.3, 0.1], [0, 0.5], [1, 1]]
    lengths = [[3, 5], [9, 2], [4, 4], [1, 2], [8, 1], [5, 7]]
    one = pairs_of(human, [sum(o) / 2 for o in said], orders=said, lengths=lengths, soft=True)
    turned = [[1 - swapped, 1 - given] for given, swapped in said]  # the second response of the file is now its first
    other = pairs_of(
        [1 - h for h in human], [sum(o) / 2 for o in turned], orders=turned, lengths=[list(reversed(pair)) for pair in lengths], soft=True
    )
    mine, theirs = agreement(one), agreement(other)
    exchanged = {"accuracy_given": "accuracy_swapped", "accuracy_swapped": "accuracy_given"}
    for name, found in mine.measures.items():
        assert found.value == pytest.approx(theirs.measures[exchanged.get(name, name)].value), name
    assert [one.pairs for one in mine.reliability] == [one.pairs for one in theirs.reliability]


# Places


def test_a_judge_of_places_is_right_where_its_place_is():
    human = [1, 1, 1, 0]
    always_first = [[1, 0]] * 4  # the first of the file when that is shown first, the second when that is
    found = values(agreement(pairs_of(human, [0.5] * 4, orders=always_first)))
    assert [found[name] for name in ORDER_MEASURES] == [0.75, 0.25, 1.0, 0.0]
    assert found["consistency"] == 0
    assert found["first_place"] == 1


def test_a_judge_of_texts_is_as_right_in_both_orders():
    human, said = [1, 0, 1, 0.5], [[1, 1], [0, 0], [0, 0], [1, 1]]
    report = agreement(pairs_of(human, [1, 0, 0, 1], orders=said))
    assert [report.measures[name].value for name in ORDER_MEASURES] == [pytest.approx(2 / 3)] * 4
    assert [report.measures[name].n for name in ORDER_MEASURES] == [3] * 4  # of the pair that people call a tie nothing is right
    assert values(report)["consistency"] == 1
    assert values(report)["first_place"] == 0.5


def test_an_order_without_a_verdict_or_with_a_tie():
    found = agreement(pairs_of([1, 1, 1], [NAN, 0.75, 1], orders=[[1, NAN], [1, 0.5], [1, 1]])).measures
    assert (found["accuracy_given"].value, found["accuracy_given"].n) == (1, 3)
    assert (found["accuracy_swapped"].value, found["accuracy_swapped"].n) == (0.5, 2)  # a tie is not right
    assert (found["consistency"].value, found["consistency"].n) == (0.5, 2)
    assert found["first_place"].value == pytest.approx(3 / 4)  # three times first in the given order, and not in the swapped one
    assert "accuracy_given" not in agreement(pairs_of([1], [1])).measures


# Length


@pytest.mark.parametrize(
    ("judge", "ai_longer", "bias"),
    [
        (lambda human, longer: human, 0.75, 0.0),
        (lambda human, longer: longer, 1.0, 1.0),
        (lambda human, longer: 1 - longer, 0.0, -1.0),
        (lambda human, longer: 1 - human, 0.25, 0.0),
    ],
)
def test_what_length_has_to_do_with_it(judge, ai_longer, bias):
    human, longer = [1, 0, 1, 0], [1, 0, 1, 1]  # of the last, people chose the shorter
    lengths = [[9, 2] if first else [2, 9] for first in longer]
    pairs = pairs_of(human, [judge(h, x) for h, x in zip(human, longer, strict=True)], lengths=lengths)
    found = values(agreement(pairs))
    assert found["human_longer"] == 0.75
    assert found["ai_longer"] == ai_longer
    assert found["verbosity_bias"] == pytest.approx(bias)


def test_disagreements_in_which_the_judge_took_the_longer():
    lengths = [[9, 2], [9, 2], [2, 9], [2, 9], [5, 5]]
    found = agreement(pairs_of([0, 0, 0, 1, 1], [1, 1, 1, 1, 0], lengths=lengths)).measures["longer_when_wrong"]
    assert (found.value, found.n) == (pytest.approx(2 / 3), 3)  # not the one where both are as long


# Probabilities


def test_the_calibration_error_is_that_of_torchmetrics():
    draw = random.Random(2)
    p = [draw.random() for _ in range(300)]
    human = [float(draw.random() < x**2) for x in p]  # not calibrated
    report = agreement(pairs_of(human, p, soft=True))
    sure = torch.tensor([max(x, 1 - x) for x in p])
    right = torch.tensor([int((x > 0.5) == (h == 1)) for x, h in zip(p, human, strict=True)])
    expected = float(binary_calibration_error(sure, right, n_bins=20))  # from 0 to 1, of which confidence fills the upper half
    assert values(report)["calibration_error"] == pytest.approx(expected, abs=1e-6)
    assert expected > 0.05
    assert sum(one.pairs for one in report.reliability) == 300
    mean = sum(one.pairs * one.accuracy for one in report.reliability) / 300
    assert mean == pytest.approx(float(right.double().mean()))


def test_a_judge_that_is_right_as_often_as_it_says_is_calibrated():
    p, human = [0.75] * 8 + [0.375] * 8, [1] * 6 + [0] * 2 + [1] * 3 + [0] * 5
    report = agreement(pairs_of(human, p, soft=True))
    assert values(report)["calibration_error"] == pytest.approx(0, abs=1e-12)
    found = [(one.low, one.pairs, one.confidence, one.accuracy) for one in report.reliability]
    assert found == [pytest.approx((0.6, 8, 0.625, 0.625)), pytest.approx((0.75, 8, 0.75, 0.75))]
    bold = agreement(pairs_of(human[:8], [1.0] * 8, soft=True))
    assert values(bold)["calibration_error"] == pytest.approx(0.25)
    coin = agreement(pairs_of([1, 0, 0.5], [0.5, 0.5, 0.5], soft=True))
    assert values(coin)["calibration_error"] == 0
    assert coin.measures["calibration_error"].n == 2
    assert "calibration_error" not in values(agreement(pairs_of(human, p)))


# Intervals


def test_answers_to_one_prompt_are_one_observation():
    human, ai = [1.0] * 10 + [0.0] * 10, [1.0, 0.0] * 10
    alone = agreement(pairs_of(human, ai)).measures["agreement"]
    again = pairs_of(human * 4, ai * 4, prompts=list(range(20)) * 4)
    assert agreement(again).measures["agreement"] == Estimate(alone.value, alone.low, alone.high, 80)
    independent = agreement(pairs_of(human * 4, ai * 4)).measures["agreement"]
    assert (alone.high - alone.low) / (independent.high - independent.low) == pytest.approx(2, rel=0.15)


def test_resamples_are_of_whole_prompts_and_draw_from_their_own_generator():
    features, prompts = torch.tensor([[1.0], [10.0], [100.0]]), torch.tensor([7, 7, 3])
    state = torch.get_rng_state()
    sums = resampled_sums(features, prompts, resamples=250, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert sums[0].item() == 111
    assert set(sums[1:, 0].tolist()) == {22.0, 111.0, 200.0}
    assert len(sums) == 251
    assert torch.equal(sums, resampled_sums(features, prompts, resamples=250, seed=3))
    assert not torch.equal(sums, resampled_sums(features, prompts, resamples=250, seed=4))


def test_a_share_without_spread_has_the_interval_of_one_observation_per_prompt():
    found = agreement(pairs_of([1.0, 0.0] * 20, [1.0, 0.0] * 20, prompts=[i // 2 for i in range(40)])).measures
    assert (found["agreement"].low, found["agreement"].high) == (pytest.approx(0.8389, abs=1e-4), 1.0)  # 20 prompts
    assert found["kappa"] == Estimate(1.0, None, None, 40)


# Reports


def test_a_report_goes_through_json_and_back():
    human, p = [1, 0, 1, 0.5], [0.9, 0.5, 0.2, 0.7]
    report = agreement(pairs_of(human, p, orders=[[x, x] for x in p], lengths=[[1, 2]] * 4, soft=True))
    assert None in [found.low for found in report.measures.values()]
    again = AgreementReport.from_json(json.loads(json.dumps(report.as_json(), allow_nan=False)))
    assert again == report


def test_every_subset_has_a_report_of_its_own():
    pairs = pairs_of([1, 0, 1, NAN], [1, 0, 0, 1], subsets=("b", "b", "a", "c"))
    found = agreement_by_subset(pairs)
    assert list(found) == ["a", "b", "c"]
    assert [report.pairs for report in found.values()] == [1, 2, 0]
    assert [report.measures["agreement"].value for report in found.values()] == [0, 1, None]
    assert agreement_by_subset(pairs_of([1], [1])) == {}


# Two judges


def test_two_judges_pair_by_pair():
    human = [1, 1, 1, 1, 0, 0.5, NAN, 1]
    one = pairs_of(human, [1, 1, 1, 0, 0, 1, 1, 1])
    other = pairs_of(human, [1, 0, 0, 1, 0.5, 1, 1, NAN])
    found = compare(one, other)
    assert (found.n, found.prompts, found.better, found.worse) == (5, 5, 3, 1)
    assert found.accuracy.value == pytest.approx(4 / 5)
    assert found.against.value == pytest.approx((2 + 0.5) / 5)
    assert found.difference.value == pytest.approx(1.5 / 5)
    assert found.p_value == pytest.approx(2 * (1 + 4) / 16)
    turned = compare(other, one)
    assert (turned.difference.value, turned.better, turned.worse) == (-found.difference.value, 1, 3)


def test_what_makes_a_pair_hard_cancels():
    draw = random.Random(0)
    easy = [draw.random() < 0.7 for _ in range(300)]
    human, one = [1.0] * 300, [float(e) for e in easy]
    other = [0.0 if i % 30 == 0 else said for i, said in enumerate(one)]
    found = compare(pairs_of(human, one), pairs_of(human, other))
    width = found.difference.high - found.difference.low
    assert width < (found.accuracy.high - found.accuracy.low) / 2
    assert found.difference.low > 0


def test_the_sign_test_is_the_binomial_one():
    assert sign_test(0, 0) == 1
    assert sign_test(5, 1) == sign_test(1, 5) == pytest.approx(2 * 7 / 64)
    assert sign_test(20, 0) == pytest.approx(2 / 2**20)


def test_other_pairs_are_not_compared():
    with pytest.raises(ValueError, match="the same labelled pairs"):
        compare(pairs_of([1, 0], [1, 1]), pairs_of([1, 1], [1, 1]))
