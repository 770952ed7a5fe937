"""Where online DPO goes, and that only pairs move it."""

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.algorithms import DPO, AllPairs, AlphaDivergence, BestVersusWorst, forward_kl, jensen_shannon, reverse_kl
from lit_align.types import UserError
from tests.algorithms.descent import pull, sampled_labels, settled, unlabelled
from tests.algorithms.published import REFERENCE_SAID, assert_gradients_agree, members, rollout_at_sampling, said, sampling_groups
from tests.algorithms.worlds import REFERENCE, REWARDS, STARTS, TablePolicy, drawn_by, expected_loss, gradient, normalised

starts = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
SETTINGS = [(2, AllPairs(), sampled_labels), (3, AllPairs(soft=True), unlabelled), (3, BestVersusWorst(soft=True), unlabelled)]


def make(start=REFERENCE, **options):
    module = DPO(TablePolicy(REFERENCE), **options)
    module.policy.become(start)
    return module


@starts
@pytest.mark.parametrize(("k", "pairing", "label"), SETTINGS, ids=["drawn labels", "soft labels", "best against worst"])
def test_labels_of_bradley_and_terry_end_at_the_tilted_reference(start, k, pairing, label):
    module = make(start, beta=0.5, pairing=pairing)
    assert pull(module, k, label).abs().max() > 1e-3
    assert_close(settled(module, k, rate=4, label=label), normalised(REFERENCE.log() + REWARDS / 0.5), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("k", "pairing", "label"), SETTINGS, ids=["drawn labels", "soft labels", "best against worst"])
def test_there_the_expected_gradient_is_nothing(k, pairing, label):
    module = make(normalised(REFERENCE.log() + REWARDS / 0.5), beta=0.5, pairing=pairing)
    assert pull(module, k, label).abs().max() < 1e-12


@starts
@pytest.mark.parametrize(
    ("link", "derivative", "rate"),
    [
        (forward_kl, lambda u: -1 / u, 0.2),
        (jensen_shannon, lambda u: (2 * u / (1 + u)).log(), 0.6),
        (AlphaDivergence(0.5), lambda u: -2 * u**-0.5, 0.2),
    ],
    ids=["forward_kl", "jensen_shannon", "alpha"],
)
def test_other_divergences_end_where_their_derivative_is_the_reward_up_to_a_constant(start, link, derivative, rate):
    module = make(start, beta=3.0, link=link, pairing=AllPairs(soft=True))
    end = settled(module, 2, rate=rate, steps=40)
    rest = 3.0 * derivative(end / REFERENCE) - REWARDS
    assert_close(rest, rest.mean(-1, keepdim=True).expand_as(rest), atol=1e-3, rtol=0)
    assert (end - normalised(REFERENCE.log() + REWARDS / 3.0)).abs().max() > 1e-3  # which is no tilted reference


def test_hard_labels_have_no_end():
    """The price only sets the speed: the best of every two is pushed up for ever."""
    for beta in (0.5, 2.0):
        end = settled(make(beta=beta), 2, rate=4 / beta, steps=20)
        assert (end.gather(-1, REWARDS.argmax(-1, keepdim=True)) > 0.9).all()


@pytest.mark.parametrize("nll", [0.0, 0.3])
def test_hard_labels_enumerated(nll):
    """Equation 7, and the winner's mean negative log-likelihood per token."""
    module, groups = make(beta=0.5, nll=nll), sampling_groups(3)
    batch = rollout_at_sampling(module, groups)
    logs, total, count = said(module.policy), torch.zeros((), dtype=torch.float64), 0.0
    for chance, p, group in members(groups):
        won, lost = (choose(group, key=REWARDS[p].tolist().__getitem__) for choose in (max, min))
        if won != lost:
            ahead = [sum(logs[p][r]) - sum(REFERENCE_SAID[p][r]) for r in (won, lost)]
            loss = (1 + (-0.5 * (ahead[0] - ahead[1])).exp()).log() - nll * sum(logs[p][won]) / len(logs[p][won])
            total, count = total + chance * loss, count + chance
    assert_gradients_agree(module, groups, batch, total / count)


def test_the_same_and_the_equal_make_no_pair():
    module = make()
    prompts, responses = torch.tensor([0, 0, 1]), torch.tensor([[1, 1], [0, 2], [0, 1]])
    scores = torch.tensor([[1.0, 2.0], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)  # the judge saw a difference where there is none
    batch, diagnostics = module.prepare(drawn_by(module, prompts, responses, scores=scores))
    assert diagnostics["pairs/per_prompt"].tolist() == [0, 0, 1]
    assert batch.used.tolist() == [[False, False], [False, False], [True, True]]
    loss = module.training_step(replace(batch, pair_normaliser=torch.tensor(1.0)), 0)["loss"]
    assert loss.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("link", [reverse_kl, forward_kl, jensen_shannon])
@pytest.mark.parametrize("pairing", [AllPairs(), AllPairs(soft=True), BestVersusWorst(soft=True)])
def test_what_was_not_asked_or_not_valid_reaches_no_gradient(link, pairing):
    """Three responses, of which the judge compared two, against those two alone."""
    nan = torch.nan
    prompts, trio = torch.tensor([0, 1]), torch.tensor([[1, 3, 2], [0, 4, 1]])
    p = torch.tensor([[[nan, 0.8, nan], [0.2, nan, nan], [nan, nan, nan]]], dtype=torch.float64).expand(2, 3, 3)
    scores = torch.tensor([[0.8, 0.2, 0.0]], dtype=torch.float64).expand(2, 3)
    valid = torch.tensor([[True, True, False]]).expand(2, 3)
    results = []
    for width in (3, 2):
        module = make(beta=0.5, pairing=pairing, link=link)
        options = {"preferences": p[:, :width, :width], "scores": scores[:, :width], "valid": valid[:, :width]}
        batch, _ = module.prepare(drawn_by(module, prompts, trio[:, :width], **options))
        assert (~batch.pairs.isnan()).sum() == 2
        losses, _ = module.objective(batch, module.policy(batch))
        results.append(gradient(module, losses.where(~batch.pairs.isnan(), 0.0).sum()))
    assert results[0].isfinite().all()
    assert results[0].abs().max() > 1e-3
    assert_close(results[0], results[1])


@pytest.mark.parametrize(("told", "pairs"), [(0.7, 1), (0.5, 0), (math.nan, 0)])
def test_a_soft_label_needs_a_judge_that_could_tell(told, pairs):
    """The first is best and the second worst by what was said of them and a third; a coin flip between the two is no label."""
    p = torch.tensor([[math.nan, told, 0.9], [1 - told, math.nan, 0.4], [0.1, 0.6, math.nan]], dtype=torch.float64)
    options = {"preferences": p.unsqueeze(0), "scores": p.nanmean(-1).unsqueeze(0) + torch.tensor([[0.0, -1.0, 0.0]])}
    for soft, expected in ((True, pairs), (False, 1)):
        batch, _ = make(pairing=BestVersusWorst(soft=soft)).prepare(
            drawn_by(make(), torch.tensor([0]), torch.tensor([[0, 1, 2]]), **options)
        )
        assert (~batch.pairs.isnan()).nonzero().tolist() == [[0, 0, 1]] * expected


def test_label_smoothing_is_a_softer_label():
    """Smoothed by a fifth, a hard label is P = .8: the gradient is nothing at a margin of logit(.8) / beta."""
    module = make(beta=0.5, label_smoothing=0.2)
    prompts, responses = torch.tensor([0]), torch.tensor([[0, 1]])
    batch, _ = module.prepare(drawn_by(module, prompts, responses))
    (better,) = [p for p in batch.pairs.flatten().tolist() if p == p]
    assert better == pytest.approx(0.8)
    margin = torch.tensor([0.0, math.log(4) / 0.5, 0.0, 0.0, 0.0], dtype=torch.float64)
    module.policy.become(normalised(REFERENCE.log() + margin))
    losses, _ = module.objective(batch, module.policy(batch))
    assert gradient(module, losses[0, 1, 0]).abs().max() < 1e-9


def test_at_the_reference_links_pull_alike_and_jensen_shannon_half_as_hard():
    pulls = {}
    for link in (reverse_kl, forward_kl, AlphaDivergence(0.5), jensen_shannon):
        module, groups = make(link=link), sampling_groups(2)
        pulls[link] = gradient(module, expected_loss(module, groups)[0])
    for link in (forward_kl, AlphaDivergence(0.5)):
        assert_close(pulls[link], pulls[reverse_kl])
    assert_close(pulls[jensen_shannon], pulls[reverse_kl] / 2)


def test_the_winner_is_pulled_as_hard_as_the_loser_is_pushed():
    module = make(beta=0.5)
    batch, _ = module.prepare(drawn_by(module, torch.tensor([0, 1]), torch.tensor([[1, 2, 3], [2, 3, 4]])))
    output = module.policy(batch)
    losses, _ = module.objective(batch, output)
    (slope,) = torch.autograd.grad(losses.where(~batch.pairs.isnan(), 0.0).sum(), output.token_logps)
    assert_close(slope[..., 0], torch.tensor([[-0.25, 0.25, 0.0], [0.0, 0.25, -0.25]], dtype=torch.float64))  # beta / 2
    assert_close(slope[..., 1], slope[..., 0])


@pytest.mark.parametrize("chance", [-0.1, 0.5, 1.0])
def test_labels_that_are_wrong_half_the_time_are_refused(chance):
    with pytest.raises(UserError, match=f"below 0.5, got {chance}"):
        make(label_smoothing=chance)


@pytest.mark.parametrize("alpha", [0.0, 1.0, 1.5])
def test_the_ends_of_alpha_are_other_links(alpha):
    with pytest.raises(UserError, match="the ends are the links reverse_kl and forward_kl"):
        AlphaDivergence(alpha)
