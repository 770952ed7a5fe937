"""Where TRL computes something else: each test is a line of docs/trl.md."""

import inspect
import math
import re
from ast import literal_eval
from collections.abc import Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, GPT2Config

from callbacks import KLMonitor
from lit_align import algorithms, data, generation, models
from lit_align.algorithms import DPO, GRPO, IPO, RLOO
from lit_align.functional.preference import dpo_loss, ipo_loss
from tests.peer.conftest import Distance
from tests.peer.ours import SIZE, Run, first_wins, patchy
from tests.tiny import sgd, write_tiny

PAGE = Path(__file__).parents[2] / "docs" / "trl.md"
OURS = algorithms, data, generation, models
CLOSE, FAR = 1e-4, 1e-2

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]


def dpo(policy: Any) -> DPO:
    return DPO(policy, beta=0.1, optimizer=sgd(0.0))


def rloo(policy: Any) -> RLOO:
    return RLOO(policy, beta=0.05, optimizer=sgd(0.0))


def grpo(policy: Any) -> GRPO:
    return GRPO(policy, beta=0.05, optimizer=sgd(0.0))


# Preferences


def test_a_tie_is_won_by_the_first(ours: Callable[..., Run], peer: Any, distance: Distance) -> None:
    run = ours(dpo, k=2, reward=first_wins)
    tied = peer(run, scores=torch.zeros(SIZE, 2)).online_dpo(beta=0.1)
    assert distance(run.steps[0].gradient, tied.gradient) < CLOSE


def test_a_response_without_a_score_has_score_0_online(ours: Callable[..., Run], peer: Any, distance: Distance) -> None:
    run = ours(dpo, k=2, reward=patchy)
    assert run.batch.pairs.isnan().all((-1, -2)).any(), "for us it is in no pair"
    none = peer(run).online_dpo(beta=0.1)
    run.annotation = run.annotation.map_tensors(lambda x, _: torch.ones_like(x) if x.dtype == torch.bool else x)
    zero = peer(run).online_dpo(beta=0.1)
    assert distance(none.gradient, zero.gradient) == 0


def test_ipo_on_fixed_pairs_averages_over_tokens(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(lambda policy: IPO(policy, beta=0.1, optimizer=sgd(0.0)), k=2)
    theirs = peer(run).dpo(beta=0.1, loss_type=["ipo"])
    ratios = run.batch.sampling_response_logps - run.batch.reference_response_logps
    means = ratios / run.batch.response_mask.sum(-1)
    sign = torch.where(run.batch.scores[:, 0] > run.batch.scores[:, 1], 1, -1)
    ours_, averaged = (float(ipo_loss(sign * (x[:, 0] - x[:, 1]), beta=0.1).mean()) for x in (ratios, means))
    assert run.steps[0].loss == pytest.approx(ours_, rel=CLOSE)
    assert theirs.loss == pytest.approx(averaged, rel=CLOSE)
    assert abs(ours_ - averaged) > 1


def test_the_sigmoid_loss_ignores_label_smoothing(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(lambda policy: DPO(policy, beta=0.1, label_smoothing=0.1, optimizer=sgd(0.0)), k=2)
    plain, smooth = (peer(run).dpo(beta=0.1, label_smoothing=smoothing) for smoothing in (0.0, 0.1))
    assert smooth.loss == plain.loss
    assert abs(run.steps[0].loss - plain.loss) > FAR


def test_the_sft_term_is_a_mean_over_tokens_of_the_batch(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(lambda policy: DPO(policy, beta=0.1, nll=1.0, optimizer=sgd(0.0)), k=2)
    chosen = run.batch.scores.argmax(-1, keepdim=True)
    nll, length = (x.gather(-1, chosen) for x in (-run.batch.sampling_response_logps, run.batch.response_mask.sum(-1)))
    without, theirs = (peer(run).dpo(beta=0.1, loss_type=loss_type).loss for loss_type in (["sigmoid"], ["sigmoid", "sft"]))
    assert run.steps[0].loss - without == pytest.approx(float((nll / length).mean()), abs=CLOSE)
    assert theirs - without == pytest.approx(float(nll.sum() / length.sum()), abs=CLOSE)
    assert abs(run.steps[0].loss - theirs) > FAR


def test_the_robust_loss_subtracts_where_ours_mixes(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(lambda policy: DPO(policy, beta=0.1, label_smoothing=0.1, optimizer=sgd(0.0)), k=2)
    ratios = run.batch.sampling_response_logps - run.batch.reference_response_logps
    margins = (ratios[:, 0] - ratios[:, 1]) * torch.where(run.batch.scores[:, 0] > run.batch.scores[:, 1], 1, -1)
    right, wrong = dpo_loss(margins, beta=0.1).mean(), dpo_loss(-margins, beta=0.1).mean()
    theirs = peer(run).dpo(beta=0.1, loss_type=["robust"], label_smoothing=0.1)
    assert run.steps[0].loss == pytest.approx(float(0.9 * right + 0.1 * wrong), abs=CLOSE)
    assert theirs.loss == pytest.approx(float((0.9 * right - 0.1 * wrong) / 0.8), abs=CLOSE)


def test_online_dpo_does_not_divide_log_probs_by_the_temperature(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(dpo, k=2)
    theirs = [peer(run).online_dpo(beta=0.1, temperature=temperature).loss for temperature in (0.5, 1.0)]
    assert theirs[0] == theirs[1]
    colder = [peer(run).rloo(beta=0.05, temperature=temperature).metrics["entropy"] for temperature in (0.5, 1.0)]
    assert colder[0] < colder[1] - FAR, "RLOO does"


# Groups


def test_the_loss_of_rloo_is_0(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(rloo, k=4)
    assert abs(peer(run).rloo(beta=0.05).loss) < CLOSE
    logps = run.batch.sampling_response_logps
    assert run.steps[0].loss == pytest.approx(float(-(run.batch.advantages * logps).mean()), rel=CLOSE)
    assert abs(run.steps[0].loss) > 1


def test_a_response_without_a_score_still_counts_in_the_mean(ours: Callable[..., Run], peer: Any, distance: Distance) -> None:
    run = ours(rloo, k=4, reward=patchy)
    theirs = peer(run).rloo(beta=0.05)
    assert_close(run.batch.advantages, theirs.advantages, atol=CLOSE, rtol=0)
    share = float(run.batch.valid.float().mean())
    assert share < 1
    scaled = {name: gradient * share for name, gradient in run.steps[0].gradient.items()}
    assert distance(scaled, theirs.gradient) < CLOSE


def test_grpo_reweights_the_gradient_of_its_divergence(ours: Callable[..., Run], peer: Any, distance: Distance) -> None:
    run = ours(lambda policy: GRPO(policy, beta=1.0, optimizer=sgd(0.0)), k=4)
    default = peer(run).grpo(beta=1.0, loss_type="grpo")
    plain = peer(run).grpo(beta=1.0, loss_type="grpo", use_bias_correction_kl=False)
    assert distance(run.steps[0].gradient, plain.gradient) < CLOSE
    assert default.loss == pytest.approx(run.steps[0].loss, abs=CLOSE), "on policy the value is the same"
    assert distance(default.gradient, plain.gradient) > FAR


@pytest.mark.parametrize("trainer", ["rloo", "grpo", "online_dpo"])
def test_learned_positions_shift_with_the_padding(
    tmp_path: Path, trainer: str, ours: Callable[..., Run], peer: Any, distance: Distance
) -> None:
    folder = write_tiny(tmp_path / "gpt2")
    torch.manual_seed(0)
    sizes = {"vocab_size": 14, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 512}
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    special = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    AutoModelForCausalLM.from_config(GPT2Config(**sizes, **off, **special, initializer_range=0.15)).save_pretrained(folder)
    algorithm, options = {
        "rloo": (rloo, {"beta": 0.05}),
        "grpo": (grpo, {"beta": 0.05, "loss_type": "grpo", "use_bias_correction_kl": False}),
        "online_dpo": (dpo, {"beta": 0.1}),
    }[trainer]
    found = {}
    for name, prompts in {"equal": ["ab", "bc", "cd", "de", "ef", "fg", "gh", "hi"], "mixed": ["a", "bcdef", *"cdefgh"]}.items():
        run = ours(algorithm, folder=folder, k=2, prompts=prompts)
        theirs = getattr(peer(run, folder=folder), trainer)(**options)
        found[name] = distance(run.steps[0].gradient, theirs.gradient)
    assert found["equal"] < CLOSE
    assert found["mixed"] > FAR


# What is logged


def test_online_dpo_logs_divergence_and_entropy_with_the_padding(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(dpo, k=2, callbacks=[KLMonitor()])
    some, more = peer(run).online_dpo(beta=0.1), peer(run, padding=40).online_dpo(beta=0.1)
    assert more.loss == pytest.approx(some.loss, abs=CLOSE)
    for name in ("objective/kl", "objective/entropy"):
        assert abs(more.metrics[name] - some.metrics[name]) > 1
    ratios = run.batch.sampling_response_logps - run.batch.reference_response_logps
    assert run.metrics["kl/reference"] == pytest.approx(float(ratios.mean()), abs=CLOSE)
    assert abs(some.metrics["objective/kl"] - float(ratios.mean())) > 1


def test_group_trainers_log_divergence_per_token(ours: Callable[..., Run], peer: Any) -> None:
    run = ours(rloo, k=4, callbacks=[KLMonitor()])
    tokens_per_response = float(run.batch.response_mask.sum()) / run.batch.scores.numel()
    theirs = peer(run).rloo(beta=0.05)
    assert run.metrics["kl/reference"] == pytest.approx(theirs.metrics["kl"] * tokens_per_response, rel=CLOSE)
    k3 = peer(run).grpo(beta=0.05, loss_type="grpo").metrics["kl"]
    assert not math.isclose(k3, theirs.metrics["kl"], rel_tol=FAR), "GRPO's is another estimate"


# Defaults


def rows() -> list[list[str]]:
    """Of the page's table of defaults: name and value of theirs, name and value of ours, or a dash twice."""
    lines = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in PAGE.read_text(encoding="utf-8").splitlines()]
    return [cells for cells in lines if len(cells) == 4 and re.fullmatch(r"\w+Config\.\w+", cells[0])]


@pytest.mark.parametrize(("name", "default", "our_name", "our_default"), rows())
def test_defaults_are_as_the_page_has_them(name: str, default: str, our_name: str, our_default: str, theirs: Any) -> None:
    config, _, option = name.partition(".")
    (found,) = (field for field in fields(vars(theirs)[config]) if field.name == option)
    assert (found.default if found.default_factory is MISSING else found.default_factory()) == literal_eval(default)
    if our_name != "-":
        our_class, _, argument = our_name.partition(".")
        (owner,) = (vars(module)[our_class] for module in OURS if our_class in vars(module))
        value = inspect.signature(owner).parameters[argument].default
        assert getattr(value, "__name__", repr(value)) == our_default


def test_the_page_has_a_table() -> None:
    assert len(rows()) > 10
