"""Agreement of rankings: against a published table, another library and what is known in closed form."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.functional import kendalls_w, mid_ranks

EVERYONE = torch.ones(1, 6, dtype=torch.bool)
# Three executives rank six applicants (Siegel 1956, p. 230): rank sums 8, 14, 11, 11, 11, 8.
EXECUTIVES = torch.tensor([[1.0, 6, 3, 2, 5, 4], [1, 5, 6, 4, 2, 3], [6, 3, 2, 5, 4, 1]]).unsqueeze(1)


def drawn(m, k, *, levels, seed=0):
    """Scores of few levels, so that many are equal, ``[M, 5, K]``."""
    return torch.randint(levels, (m, 5, k), generator=torch.Generator().manual_seed(seed)).double()


def test_the_published_table():
    assert_close(kendalls_w(EXECUTIVES, EVERYONE), torch.tensor([12 * 25.5 / (9 * (216 - 6))]))


def test_equal_scores_share_their_places():
    scores = torch.tensor([[5.0, 1.0, 5.0, 5.0, 0.0]])
    assert mid_ranks(scores, torch.ones(1, 5, dtype=torch.bool)).tolist() == [[4.0, 2.0, 4.0, 4.0, 1.0]]
    assert mid_ranks(scores, torch.tensor([[True, False, True, False, True]])).tolist() == [[2.5, 0.0, 2.5, 0.0, 1.0]]


@pytest.mark.parametrize(("m", "k", "levels"), [(3, 4, 2), (4, 5, 3), (2, 3, 100), (7, 6, 4)])
def test_it_is_friedmans_statistic_per_degree_of_freedom(m, k, levels):
    stats = pytest.importorskip("scipy.stats")
    scores = drawn(m, k, levels=levels)
    found = kendalls_w(scores, torch.ones(5, k, dtype=torch.bool))
    for row in range(5):
        expected = stats.friedmanchisquare(*scores[:, row].T.numpy()).statistic / (m * (k - 1))
        assert float(found[row]) == pytest.approx(expected, abs=1e-12)


def test_one_ranking_agrees_with_itself_and_two_opposite_ones_don_t():
    scores = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    everyone = torch.ones(1, 4, dtype=torch.bool)
    assert kendalls_w(scores, everyone).item() == 1
    assert kendalls_w(torch.cat([scores, 10 * scores + 3, scores.exp()]), everyone).item() == 1
    assert kendalls_w(torch.cat([scores, -scores]), everyone).item() == 0
    tied = torch.tensor([[[1.0, 2.0, 2.0, 3.0]]])
    assert kendalls_w(torch.cat([tied, tied]), everyone).item() == pytest.approx(1)


@pytest.mark.parametrize("first", range(6))
def test_of_two_responses_it_is_the_squared_majority(first):
    wins = torch.tensor([1.0] * first + [-1.0] * (5 - first)).reshape(5, 1, 1)
    found = kendalls_w(wins * torch.tensor([1.0, -1.0]), torch.ones(1, 2, dtype=torch.bool))
    assert found.item() == pytest.approx((2 * first / 5 - 1) ** 2, abs=1e-6)


def test_invalid_responses_are_not_ranked():
    scores = drawn(4, 6, levels=3)
    valid = torch.tensor([True, False, True, True, False, True]).expand(5, 6)
    assert_close(kendalls_w(scores, valid), kendalls_w(scores[..., [0, 2, 3, 5]], torch.ones(5, 4, dtype=torch.bool)))
    assert kendalls_w(scores, torch.tensor([True, *[False] * 5]).expand(5, 6)).isnan().all()


def test_nobody_who_tells_nothing_apart_contradicts():
    assert kendalls_w(torch.zeros(3, 1, 6), EVERYONE).item() == 1
    half = torch.cat([torch.zeros(1, 1, 6), EXECUTIVES[:1]])  # one ranks, one does not
    assert kendalls_w(half, EVERYONE).item() == pytest.approx(0.5)
