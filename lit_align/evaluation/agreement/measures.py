"""What agreement between people and a judge is measured by: each a function of sums over pairs, so that sums can be resampled."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lit_align.evaluation.agreement.pairs import FIRST, SECOND, TIE, LabelledPairs, choices

BINS = 10  # of confidence, between 1/2 and 1
Statistic = Callable[[Tensor], Tensor]
"""From sums ``[..., F]`` to a value ``[...]``; NaN where it is not defined."""


@final
@dataclass(frozen=True, slots=True)
class Measure:
    """Something to measure: ``features`` ``[N, F]``, 0 where a pair is not ``counted`` ``[N]``, and what their sums amount to; whether
    that is the share of something among those pairs."""

    features: Tensor
    statistic: Statistic
    counted: Tensor
    is_share: bool = False


def ratio(sums: Tensor) -> Tensor:
    """The first over the second, ``[..., 2] -> [...]``."""
    return sums[..., 0] / sums[..., 1]


def cohen_kappa(confusion: Tensor) -> Tensor:
    r"""Agreement beyond what two raters with these habits would have by chance, ``[..., C, C] -> [...]``.

    .. math:: \kappa = \frac{p_o - p_e}{1 - p_e}, \qquad p_e = \sum_c p_{c\cdot}\, p_{\cdot c}

    1 is perfect, 0 is chance, below 0 worse than chance. NaN where chance alone would be perfect, because both always said one and the
    same thing, and where there is nothing. Source: J. Cohen, A coefficient of agreement for nominal scales, 1960.

    >>> cohen_kappa(torch.tensor([[20.0, 5.0], [10.0, 15.0]]))
    tensor(0.4000)
    """
    p = confusion / confusion.sum((-2, -1), keepdim=True)
    observed = p.diagonal(dim1=-2, dim2=-1).sum(-1)
    expected = (p.sum(-1) * p.sum(-2)).sum(-1)
    return ((observed - expected) / (1 - expected)).where(expected < 1, torch.nan)


def measures_of(pairs: LabelledPairs) -> dict[str, Measure]:
    """Every measure that these pairs allow, by name; what each says is in docs/trust.md."""
    found = choice_measures(pairs) | vote_measures(pairs)
    if pairs.orders is not None:
        found |= order_measures(pairs, pairs.orders)
    if pairs.lengths is not None:
        found |= length_measures(pairs, pairs.lengths)
    if pairs.soft:
        features, counted = reliability(pairs)
        found["calibration_error"] = Measure(features, calibration_error, counted)
    return found


def choice_measures(pairs: LabelledPairs) -> dict[str, Measure]:
    """Agreement and kappa, with ties as a third choice and of pairs where neither side said tie; how often each side did."""
    both = (pairs.human >= 0) & (pairs.ai >= 0)
    cells = one_hot((pairs.human * 3 + pairs.ai).where(both, 0), 9).double() * both.unsqueeze(-1)  # [N, 9], human by AI
    decided = both & (pairs.human != TIE) & (pairs.ai != TIE)

    def kappa_of(kept: tuple[int, ...], counted: Tensor) -> Measure:
        return Measure(cells, lambda sums: cohen_kappa(sums.unflatten(-1, (3, 3))[..., kept, :][..., kept]), counted)

    return {
        "agreement": share(pairs.human == pairs.ai, both),
        "kappa": kappa_of((FIRST, TIE, SECOND), both),
        "agreement_without_ties": share(pairs.human == pairs.ai, decided),
        "kappa_without_ties": kappa_of((FIRST, SECOND), decided),
        "human_ties": share(pairs.human == TIE, both),
        "ai_ties": share(pairs.ai == TIE, both),
    }


def vote_measures(pairs: LabelledPairs) -> dict[str, Measure]:
    """How often two people agree about a pair, each pair of votes counted once; nothing where no pair has two votes."""
    votes = pairs.votes.double()
    total = votes.sum(-1)
    couples = torch.stack([(votes * (votes - 1)).sum(-1), total * (total - 1)], -1) / 2  # that agree, of all
    return {"human_agreement": Measure(couples, ratio, total > 1, is_share=True)} if bool((total > 1).any()) else {}


def order_measures(pairs: LabelledPairs, orders: Tensor) -> dict[str, Measure]:
    """Of a judge that was asked in both orders: how right in each, how steady, which place it likes, and what that costs.

    Right is the choice of the people, among pairs where they made one; a tie of the judge is not right.
    """
    human, said = pairs.human, choices(orders)  # [N], [N, 2]
    asked = (said >= 0) & ((human == FIRST) | (human == SECOND)).unsqueeze(-1)  # [N, 2]
    right = (said == human.unsqueeze(-1)) & asked
    ahead = torch.stack([human == FIRST, human == SECOND], -1)  # whether what people chose was shown first
    took_first = torch.stack([said[:, 0] == FIRST, said[:, 1] == SECOND], -1)
    chose = (said == FIRST) | (said == SECOND)
    return {
        "accuracy_given": share(right[:, 0], asked[:, 0]),
        "accuracy_swapped": share(right[:, 1], asked[:, 1]),
        "consistency": share(said[:, 0] == said[:, 1], (said >= 0).all(-1)),
        "first_place": _share_of_answers(took_first, chose),
        "accuracy_chosen_first": _share_of_answers(right, asked & ahead),
        "accuracy_chosen_second": _share_of_answers(right, asked & ~ahead),
    }


def length_measures(pairs: LabelledPairs, lengths: Tensor) -> dict[str, Measure]:
    r"""How often the longer response wins, among pairs of two lengths where people and judge both made a choice.

    .. math:: \text{verbosity bias} = P(J = H \mid H \text{ chose the longer}) - P(J = H \mid H \text{ chose the shorter})

    is 0 where J = H, 1 for a judge that always takes the longer, -1 for one that always takes the shorter. Source of the latter:
    Verbosity bias in preference labeling by large language models, https://arxiv.org/abs/2310.10076.
    """
    longer = torch.full_like(pairs.human, TIE)
    longer = longer.masked_fill(lengths[:, 0] > lengths[:, 1], FIRST).masked_fill(lengths[:, 0] < lengths[:, 1], SECOND)
    counted = (pairs.human >= 0) & (pairs.ai >= 0) & (pairs.human != TIE) & (pairs.ai != TIE) & (longer != TIE)
    ai_longer, human_longer, same = pairs.ai == longer, pairs.human == longer, pairs.ai == pairs.human
    cells = torch.stack([same & human_longer, human_longer, same & ~human_longer, ~human_longer], -1) & counted.unsqueeze(-1)
    return {
        "ai_longer": share(ai_longer, counted),
        "human_longer": share(human_longer, counted),
        "longer_when_wrong": share(ai_longer, counted & ~same),
        "verbosity_bias": Measure(cells.double(), lambda sums: ratio(sums[..., :2]) - ratio(sums[..., 2:]), counted),
    }


def reliability(pairs: LabelledPairs) -> tuple[Tensor, Tensor]:
    """Pairs by how sure the judge was, and which pairs count: those where people made a choice.

    Its confidence is the larger of p and 1 - p. At exactly 1/2 it says that it may as well be wrong, and is half right.

    Returns:
        Number of pairs, sum of confidence, how many are right, by bin of confidence from 1/2 to 1, ``[N, 3 * BINS]``; ``[N]``.
    """
    counted = (pairs.ai >= 0) & ((pairs.human == FIRST) | (pairs.human == SECOND))
    p = pairs.verdicts.where(counted, 0.5)
    sure = torch.maximum(p, 1 - p)
    right = (pairs.ai == pairs.human).double().masked_fill(pairs.ai == TIE, 0.5)
    bins = one_hot(((sure - 0.5) * 2 * BINS).long().clamp(max=BINS - 1), BINS).double() * counted.unsqueeze(-1)  # [N, BINS]
    return torch.cat([bins, bins * sure.unsqueeze(-1), bins * right.unsqueeze(-1)], -1), counted


def calibration_error(sums: Tensor) -> Tensor:
    """Expected calibration error: how far accuracy and confidence are apart, on average over pairs, ``[..., 3 * BINS] -> [...]``.

    Source: On calibration of modern neural networks, equation 3, https://arxiv.org/abs/1706.04599.
    """
    count, sure, right = sums.unflatten(-1, (3, -1)).unbind(-2)
    return (right - sure).abs().sum(-1) / count.sum(-1)


def share(hit: Tensor, counted: Tensor) -> Measure:
    """How often it is so among the pairs that count, bool ``[N]`` each."""
    return Measure(torch.stack([hit & counted, counted], -1).double(), ratio, counted, is_share=True)


def _share_of_answers(hit: Tensor, counted: Tensor) -> Measure:
    """The same over the answers in both orders, bool ``[N, 2]`` each."""
    return Measure(torch.stack([(hit & counted).sum(-1), counted.sum(-1)], -1).double(), ratio, counted.any(-1), is_share=True)
