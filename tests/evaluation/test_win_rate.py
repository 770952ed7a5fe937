"""Win rates by hand, and intervals that are as wide as prompts, not answers, allow."""

import math

import pytest
import torch

from lit_align.evaluation.win_rate import WinRate, win_rate


def clustered(prompts: int, answers: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores whose chance of winning is mostly the prompt's."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randn(prompts, 1, generator=generator)
    return prompt + 0.5 * torch.randn(prompts, answers, generator=generator), torch.full((prompts, answers), -0.3)


def test_wins_count_one_and_ties_one_half():
    result = win_rate(torch.tensor([[3.0, 1.0], [0.0, 2.0], [5.0, 0.0]]), torch.tensor([[1.0, 1.0], [1.0, 2.0], [4.0, 1.0]]))
    assert result.value == pytest.approx((1 + 0.5 + 0 + 0.5 + 1 + 0) / 6)
    assert result.ties == pytest.approx(2 / 6)
    assert result.n == 6
    assert 0 <= result.low < result.value < result.high <= 1


def test_swapping_sides_mirrors_everything():
    scores, rivals = clustered(40, 3)
    scores, rivals = (scores + 0.5).round(), rivals.round()
    there, back = win_rate(scores, rivals), win_rate(rivals, scores)
    assert there.ties == back.ties > 0
    assert there.value > 0.6
    assert [back.value, back.low, back.high] == pytest.approx([1 - there.value, 1 - there.high, 1 - there.low])


def test_only_the_order_of_scores_matters():
    scores, rivals = clustered(40, 3)
    assert win_rate(scores.exp() * 100, rivals.exp() * 100) == win_rate(scores, rivals)


def test_one_axis_is_one_answer_per_prompt():
    scores, rivals = clustered(30, 1)
    assert win_rate(scores[:, 0], rivals[:, 0]) == win_rate(scores, rivals)


def test_one_rival_meets_every_answer_to_its_prompt():
    scores, _ = clustered(30, 4)
    rivals = torch.linspace(-1, 1, 30)
    expected = win_rate(scores, rivals.unsqueeze(-1).expand(30, 4))
    assert win_rate(scores, rivals) == win_rate(scores, rivals.unsqueeze(-1)) == expected
    assert win_rate(rivals, scores).value == pytest.approx(1 - expected.value)
    assert expected.n == 120


def test_pairs_that_do_not_count_are_as_if_they_were_not_there():
    scores, rivals = clustered(30, 4)
    kept = win_rate(scores[:20, :3], rivals[:20, :3])
    valid = torch.zeros(30, 4, dtype=torch.bool)
    valid[:20, :3] = True
    assert win_rate(scores.where(valid, math.nan), rivals.where(valid, math.inf), valid) == kept
    assert kept.n == 60


def test_prompts_count_by_their_valid_pairs():
    scores = torch.tensor([[1.0, 1.0, 1.0], [0.0, 9.0, 9.0]])
    valid = torch.tensor([[True, True, True], [True, False, False]])
    assert win_rate(scores, torch.full((2, 3), 0.5), valid).value == 0.75


def test_a_mask_may_speak_of_whole_prompts():
    scores, rivals = clustered(30, 4)
    assert win_rate(scores, rivals, torch.arange(30) < 20) == win_rate(scores[:20], rivals[:20])


# The interval


def test_the_bootstrap_is_as_wide_as_the_error_of_a_mean_over_prompts():
    scores, rivals = clustered(200, 4)
    result = win_rate(scores, rivals, resamples=4000)
    of_prompts = (scores > rivals).double().mean(-1)
    error = (of_prompts.std() / math.sqrt(200)).item()
    assert (result.high - result.low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    independent = math.sqrt(result.value * (1 - result.value) / 800)
    assert error > 1.5 * independent  # what an interval over answers would have claimed


def test_saying_the_same_thing_twice_is_no_evidence():
    scores, rivals = clustered(50, 2)
    once, thrice = win_rate(scores, rivals), win_rate(scores.repeat(1, 3), rivals.repeat(1, 3))
    assert [thrice.value, thrice.low, thrice.high] == pytest.approx([once.value, once.low, once.high])


def test_more_prompts_narrow_it():
    few, many = (win_rate(*clustered(prompts, 2)) for prompts in (50, 800))
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(4, rel=0.3)


def test_levels_nest():
    scores, rivals = clustered(60, 2)
    narrow, middle, wide = (win_rate(scores, rivals, level=level) for level in (0.5, 0.8, 0.99))
    assert wide.low < middle.low < narrow.low < narrow.value < narrow.high < middle.high < wide.high


def test_it_covers_the_truth_about_as_often_as_it_says():
    truth = 0.5 * (1 + math.erf(0.3 / math.sqrt(1.25) / math.sqrt(2)))
    results = [win_rate(*clustered(60, 3, seed), resamples=300) for seed in range(200)]
    covered = sum(result.low <= truth <= result.high for result in results) / 200
    assert 0.90 <= covered <= 0.985


@pytest.mark.parametrize(("prompts", "answers"), [(20, 1), (20, 8), (1, 5)])
def test_nothing_but_wins_is_not_certainty(prompts, answers):
    """Wilson for as many observations as prompts: z^2 / (n + z^2) of losses can't be excluded, however many answers there are."""
    result = win_rate(torch.ones(prompts, answers), torch.zeros(prompts, answers))
    assert (result.value, result.high, result.ties) == (1.0, pytest.approx(1.0), 0.0)
    assert result.low == pytest.approx(prompts / (prompts + 1.959963985**2))
    losses = win_rate(torch.zeros(prompts, answers), torch.ones(prompts, answers))
    assert (losses.value, losses.low, losses.high) == (0.0, pytest.approx(0.0, abs=1e-12), pytest.approx(1 - result.low))


def test_nothing_but_ties_is_a_half_of_which_little_is_known():
    result = win_rate(torch.ones(20, 3), torch.ones(20, 3))
    z2 = 1.959963985**2
    assert (result.value, result.ties, result.n) == (0.5, 1.0, 60)
    assert [result.low, result.high] == pytest.approx([0.5 - 0.5 * math.sqrt(z2 / (20 + z2)), 0.5 + 0.5 * math.sqrt(z2 / (20 + z2))])


def test_prompts_that_agree_on_a_mixture_are_not_certain_either():
    result = win_rate(torch.tensor([[1.0, 1.0, 0.0]] * 10), torch.full((10, 3), 0.5))
    assert result.value == pytest.approx(2 / 3)
    assert result.low < 0.45
    assert result.high > 0.8


def test_a_single_prompt_says_almost_nothing():
    result = win_rate(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.full((1, 4), 0.5))
    assert (result.low, result.high) == (pytest.approx(0.75 - 0.55, abs=0.1), pytest.approx(0.97, abs=0.03))


def test_without_a_pair_nothing_is_known():
    nothing = WinRate(value=0.5, low=0.0, high=1.0, ties=0.0, n=0)
    assert win_rate(torch.full((2, 2), math.nan), torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)) == nothing
    assert win_rate(torch.zeros(0, 2), torch.zeros(0, 2)) == nothing


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    scores, rivals = clustered(40, 2)
    state = torch.random.get_rng_state()
    first = win_rate(scores, rivals, seed=1, resamples=101)
    torch.manual_seed(123)
    assert win_rate(scores, rivals, seed=1, resamples=101) == first
    torch.random.set_rng_state(state)
    other = win_rate(scores, rivals, seed=2, resamples=101)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (other.low, other.high) != (first.low, first.high)


# Mistakes


@pytest.mark.parametrize("side", [0, 1])
def test_a_score_that_is_not_a_number_is_no_loss(side):
    pair = [torch.ones(3, 2), torch.zeros(3, 2)]
    pair[side][1, 1] = math.nan
    with pytest.raises(ValueError, match="NaN: give `valid`"):
        win_rate(*pair)


@pytest.mark.parametrize(
    ("shape", "rival", "valid"), [((3, 2), (4, 2), (3, 2)), ((3, 2), (3, 4), (3, 2)), ((3, 2), (3, 2), (2, 2)), ((3, 2, 1), (3, 2), (3, 2))]
)
def test_shapes_that_do_not_fit_are_refused(shape, rival, valid):
    with pytest.raises(ValueError, match="got "):
        win_rate(torch.zeros(shape), torch.zeros(rival), torch.ones(valid, dtype=torch.bool))


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 95}, {"resamples": 0}])
def test_settings_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must"):
        win_rate(torch.ones(2), torch.zeros(2), **options)
