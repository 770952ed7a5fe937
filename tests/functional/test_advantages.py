"""Baselines inside a group: values by hand, invariances, and scores that do not exist."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import comparable, group_centred, group_standardised, leave_one_out, within_group_variance

BASELINES = [group_centred, leave_one_out, group_standardised]
SCORES = torch.tensor([[1.0, 2.0, 6.0, 3.0], [0.5, -4.0, 0.5, 1.0]], dtype=torch.float64)


def test_group_centred_subtracts_the_mean_of_all():
    assert group_centred(SCORES).tolist() == [[-2.0, -1.0, 3.0, 0.0], [1.0, -3.5, 1.0, 1.5]]


def test_leave_one_out_subtracts_the_mean_of_the_others():
    expected = [[row[k] - sum(row[:k] + row[k + 1 :]) / 3 for k in range(4)] for row in SCORES.tolist()]
    assert_close(leave_one_out(SCORES), torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=0)


@pytest.mark.parametrize("size", [2, 3, 4])
def test_the_mean_is_leave_one_out_at_k_minus_one_over_k(size):
    assert_close(group_centred(SCORES[:, :size]), (size - 1) / size * leave_one_out(SCORES[:, :size]))


def test_two_responses_get_half_their_difference_and_the_whole():
    pair = torch.tensor([[5.0, 2.0]])
    assert group_centred(pair).tolist() == [[1.5, -1.5]]
    assert leave_one_out(pair).tolist() == [[3.0, -3.0]]


def test_group_standardised_divides_by_the_unbiased_standard_deviation():
    expected = (SCORES - SCORES.mean(-1, keepdim=True)) / (SCORES.std(-1, keepdim=True) + 0.5)
    assert_close(group_standardised(SCORES, eps=0.5), expected)


def test_group_standardised_keeps_only_the_sign_of_a_pair():
    pairs = torch.tensor([[0.0, 1.0], [0.0, 100.0], [3.0, 1.0]], dtype=torch.float64)
    assert_close(group_standardised(pairs, eps=1e-12) * math.sqrt(2), torch.tensor([[-1.0, 1], [-1, 1], [1, -1]], dtype=torch.float64))


def test_variance_within_a_group_is_unbiased():
    variance, exists = within_group_variance(SCORES)
    assert_close(variance, SCORES.var(-1))
    assert exists.tolist() == [True, True]


@pytest.mark.parametrize("size", [2, 3, 4])
def test_variance_does_not_depend_on_how_many_responses_were_drawn(size):
    """Exact expectation over all draws of `size` independent scores."""
    values, probabilities = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    draws = torch.cartesian_prod(*[torch.arange(3)] * size)
    expected_variance = (probabilities[draws].prod(-1) * within_group_variance(values[draws])[0]).sum()
    mean = (probabilities * values).sum()
    assert_close(expected_variance, (probabilities * (values - mean).square()).sum())


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("score", [0.1, -7.3, 1e7])
@pytest.mark.parametrize("size", [2, 3, 7])
def test_equal_scores_are_exactly_zero_advantages(baseline, dtype, score, size):
    assert baseline(torch.full((2, size), score, dtype=dtype)).tolist() == [[0.0] * size] * 2


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_constant_of_the_prompt_changes_nothing(baseline):
    assert_close(baseline(SCORES + torch.tensor([[100.0], [-3.0]])), baseline(SCORES))


@pytest.mark.parametrize("baseline", BASELINES)
def test_responses_and_prompts_may_come_in_any_order(baseline):
    responses, prompts = [2, 0, 3, 1], [1, 0]
    assert_close(baseline(SCORES[prompts][:, responses]), baseline(SCORES)[prompts][:, responses])


@pytest.mark.parametrize("baseline", BASELINES)
def test_better_than_a_sibling_means_a_larger_advantage(baseline):
    assert torch.equal(baseline(SCORES).argsort(stable=True), SCORES.argsort(stable=True))


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("rubbish", [math.nan, math.inf, -1e30])
def test_what_is_not_valid_is_as_if_it_had_not_been_drawn(baseline, rubbish):
    scores = torch.tensor([[rubbish, 1.0, 4.0, 5.5], [2.0, rubbish, 4.0, rubbish]], dtype=torch.float64)
    valid = torch.tensor([[False, True, True, True], [True, False, True, False]])
    actual = baseline(scores, valid)
    assert actual[0, 0].item() == actual[1, 1].item() == actual[1, 3].item() == 0.0
    assert_close(actual[:1, 1:], baseline(scores[:1, 1:]))
    assert_close(actual[1:, [0, 2]], baseline(scores[1:, [0, 2]]))
    variance, exists = within_group_variance(scores, valid)
    assert_close(variance, torch.stack([scores[0, 1:].var(), scores[1, [0, 2]].var()]))
    assert exists.tolist() == [True, True]


@pytest.mark.parametrize("baseline", BASELINES)
def test_a_response_without_a_sibling_has_no_advantage(baseline):
    scores = torch.tensor([[math.nan, 7.3, math.nan], [math.nan, math.nan, math.nan]])
    valid = torch.tensor([[False, True, False], [False, False, False]])
    assert baseline(scores, valid).tolist() == [[0.0] * 3] * 2
    variance, exists = within_group_variance(scores, valid)
    assert variance.tolist() == [0.0, 0.0]
    assert exists.tolist() == [False, False]


def test_comparable_needs_two_valid_responses():
    valid = torch.tensor([[True, True, True], [True, False, True], [False, True, False], [False, False, False]])
    assert comparable(valid).tolist() == [[True, True, True], [True, False, True], [False] * 3, [False] * 3]


@pytest.mark.parametrize("function", [*BASELINES, within_group_variance])
def test_one_response_per_prompt_is_refused_with_a_remedy(function):
    with pytest.raises(ValueError, match=rf"{function.__name__} .* K = 1\. Set responses_per_prompt >= 2, or choose .*Batch\w+\(\)"):
        function(torch.zeros(5, 1))


@pytest.mark.parametrize("baseline", BASELINES)
def test_the_remedy_for_one_response_per_prompt_is_a_batch_baseline(baseline):
    with pytest.raises(ValueError, match=r"a batch baseline such as BatchMean\(\)"):
        baseline(torch.zeros(5, 1))


@pytest.mark.parametrize("function", [*BASELINES, within_group_variance])
def test_a_mask_of_another_shape_is_refused(function):
    with pytest.raises(ValueError, match=r"\(2, 4\), got \(4,\)"):
        function(SCORES, torch.ones(4, dtype=torch.bool))


@pytest.mark.parametrize("baseline", [*BASELINES, partial(within_group_variance)])
def test_low_precision_scores_are_computed_in_float32(baseline):
    def first(result):
        return result[0] if isinstance(result, tuple) else result

    scores = torch.tensor([[100.0, 100.5, 101.0], [1.0, 0.0, 0.0]], dtype=torch.bfloat16)
    assert first(baseline(scores)).dtype == torch.float32
    assert_close(first(baseline(scores)).double(), first(baseline(scores.double())), atol=1e-5, rtol=1e-5)
    assert_close(first(baseline(torch.tensor([[0, 1, 5]]))), first(baseline(torch.tensor([[0.0, 1.0, 5.0]]))))
