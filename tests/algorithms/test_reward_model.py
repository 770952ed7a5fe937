"""A reward model through the Trainer: what it learns, what must not change a step, what a resume remembers, two processes."""

import inspect
import math
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.strategies import DDPStrategy
from torch.testing import assert_close

from lit_align import algorithms
from lit_align.algorithms import AlignmentModule, AllPairs, BestVersusWorst, BradleyTerry, PlackettLuce, RewardModel, SteppingModule
from lit_align.algorithms.data_smoothing import SmoothedLabels
from lit_align.data.packing import encoded, packed
from lit_align.models import RewardNetwork
from lit_align.types import AlignmentBatch, EncodedPrompt, UserError
from tests.pairs import ListPairs, Row, pair_data
from tests.tiny import make_data, make_trainer, sgd, write_tiny

LISTS: list[Row] = [  # eight prompts, of which the third is a tie and the sixth has one response twice
    ("ab", ["c d", "abcd", "j", ""], [1.0, 2.5, 0.0, -1.0]),
    ("j", ["hij", "a", "bb", "cd ef"], [0.0, 1.0, 0.5, 2.0]),
    ("", ["aa", "bb", "cc", "d"], [1.0, 1.0, 1.0, 1.0]),
    ("def", ["gg", "i", "hh hh", "e"], [3.0, 1.0, 1.0, 0.0]),
    ("c", ["abc", "cba", "", "bac"], [0.1, 0.2, 0.3, 0.4]),
    ("gh", ["a a", "a a", "b", "c"], [1.0, 0.0, 0.5, 2.0]),
    ("ii", ["jj", "ff", "e e", "abab"], [-1.0, -2.0, -0.5, 0.0]),
    ("a b", ["c", "d", "ee", "fgfg"], [0.9, 0.8, 0.2, 0.1]),
]
VOWELS: list[Row] = [(a, [a + "i" * n, "g" * n], [1.0, 0.0]) for a in "abcdefgh" for n in (1, 2)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("model"))


def make(model: str, lr: float = 0.05, **options: Any) -> RewardModel:
    return RewardModel(RewardNetwork(model), **({"optimizer": sgd(lr)} | options))


def weights(module: RewardModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in module.network.parameters()])


def stepped(model: str, folder: Path, rows: list[Row], *, module: RewardModel | None = None, **data: Any) -> dict[str, Any]:
    """One optimizer step over all rows: how far it moved, and what was logged."""
    module = make(model) if module is None else module
    start, micro = weights(module), data.get("micro_batch_prompts", len(rows))
    trainer = make_trainer(folder, max_epochs=1, accumulate_grad_batches=len(rows) // micro)
    trainer.fit(module, pair_data(rows, prompts_per_rollout=len(rows), **({"micro_batch_prompts": micro} | data)))
    return {"moved": weights(module) - start, "metrics": trainer.callback_metrics, "trainer": trainer}


def batch_of(module: RewardModel, rows: list[Row]) -> AlignmentBatch:
    """As the data module makes it, with its pairs."""
    prompts = [EncodedPrompt(prompt, tuple(module.network.encode(prompt))) for prompt in ListPairs(rows)]
    packs = [encoded(module.network, prompt, prompt.prompt.answers, 100) for prompt in prompts]
    batch = packed(packs, module.network.pad_id, torch.zeros(len(rows), dtype=torch.long))
    return replace(batch, pairs=module.pairing.pairs(batch))


def test_every_module_trains_a_policy_or_is_tested_here() -> None:
    """The others are in the common suite, which insists on it."""
    exported = [getattr(algorithms, name) for name in algorithms.__all__]
    kinds = {x for x in exported if inspect.isclass(x) and issubclass(x, SteppingModule) and not inspect.isabstract(x)}
    assert {kind for kind in kinds if not issubclass(kind, AlignmentModule)} == {RewardModel}


@pytest.mark.parametrize("loss", [BradleyTerry(), BradleyTerry(margin=0.5), PlackettLuce()])
def test_the_gradient_is_that_of_the_published_loss(loss: Any, model: str, tmp_path: Path) -> None:
    """Written out pair by pair, or choice by choice, from scores of one row at a time."""
    module = make(model, loss=loss)
    terms, pairs = [], 0
    for prompt, texts, scores in LISTS:
        rows = [torch.tensor([module.network.tokenizer(prompt + text)["input_ids"]]) for text in texts]
        v = [module.network(row, torch.ones_like(row, dtype=torch.bool))[0] if row.numel() else None for row in rows]
        beaten = {
            i: [j for j in range(4) if scores[i] > scores[j] and texts[i] != texts[j] and prompt + texts[j]]
            for i in range(4)
            if prompt + texts[i]
        }
        for i, losers in beaten.items():
            pairs += len(losers)
            if isinstance(loss, BradleyTerry):
                terms += [-torch.sigmoid(v[i] - v[j] - loss.margin * (scores[i] - scores[j])).log() for j in losers]
            elif losers:
                terms.append(torch.stack([v[k] for k in (i, *losers)]).logsumexp(0) - v[i])
    expected = torch.stack(terms).sum() / pairs
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(expected, list(module.network.parameters()))])
    found = stepped(model, tmp_path, LISTS, module=module)
    assert_close(found["moved"], -0.05 * gradient, atol=1e-6, rtol=1e-3)
    assert float(found["metrics"]["train/loss"]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(found["metrics"]["pairs/per_prompt"]) == pytest.approx(pairs / len(LISTS))
    assert gradient.norm() > 0.1


def test_micro_batches_and_order_change_nothing(model: str, tmp_path: Path) -> None:
    whole = stepped(model, tmp_path, LISTS)
    for rows, micro in ((LISTS, 2), (LISTS[::-1], 8), ([(p, t[::-1], s[::-1]) for p, t, s in LISTS], 4)):
        assert_close(stepped(model, tmp_path, rows, micro_batch_prompts=micro)["moved"], whole["moved"], atol=1e-6, rtol=1e-3)
    assert whole["moved"].norm() > 1e-3


def test_a_ranking_of_two_is_a_pair(model: str, tmp_path: Path) -> None:
    one, other = (stepped(model, tmp_path, VOWELS, module=make(model, loss=loss)) for loss in (BradleyTerry(), PlackettLuce()))
    assert_close(one["moved"], other["moved"], atol=1e-6, rtol=1e-4)


def test_what_was_cut_and_what_nobody_scored_is_in_no_pair(model: str, tmp_path: Path) -> None:
    rows: list[Row] = [("a", ["b", "c"], [1.0, 0.0]), ("d", ["e", "f"], [0.0, 1.0])]
    long: list[Row] = [("a", ["b", "c" * 30], [1.0, 0.0]), ("d", ["e", "f"], [0.0, 1.0])]
    unscored: Any = [("a", ["b", "c"], [1.0, None]), ("d", ["e", "f"], [0.0, 1.0])]
    alone = stepped(model, tmp_path, rows[1:])["moved"]
    cut = stepped(model, tmp_path, long, max_response_tokens=8)
    assert_close(cut["moved"], alone, atol=1e-6, rtol=1e-3)
    assert float(cut["metrics"]["response/cut"]) == 0.25
    assert_close(stepped(model, tmp_path, unscored)["moved"], alone, atol=1e-6, rtol=1e-3)
    assert not torch.allclose(stepped(model, tmp_path, rows)["moved"], alone, atol=1e-5)


def test_it_learns_and_says_how_well(model: str, tmp_path: Path) -> None:
    module = make(model, optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=3e-3))
    trainer = make_trainer(tmp_path, max_epochs=12, check_val_every_n_epoch=12)
    trainer.fit(module, pair_data(VOWELS[:12], VOWELS[12:], prompts_per_rollout=12, max_response_tokens=12))
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert metrics["val/accuracy"] == 1.0
    batch = batch_of(module, VOWELS[12:])
    with module.network.inference():
        values = module.values(batch)
    margins = values[:, 0] - values[:, 1]
    assert (margins > 0).all()
    assert metrics["val/loss"] == pytest.approx(float(-margins.sigmoid().log().mean()), rel=1e-4)
    assert metrics["val/margin"] == pytest.approx(float(margins.mean()), rel=1e-4)
    assert metrics["val/calibration_error"] == pytest.approx(float(1 - margins.sigmoid().mean()), rel=1e-4)  # all of them right


def test_labels_follow_the_model_and_are_resumed(model: str, tmp_path: Path) -> None:
    def run(folder: Path, epochs: int, checkpoint: Path | None = None) -> tuple[RewardModel, Any]:
        module = make(model, data_smoothing=0.25)
        trainer = make_trainer(folder, max_epochs=epochs)
        trainer.fit(module, pair_data(VOWELS[:8]), ckpt_path=checkpoint)
        return module, trainer

    module, trainer = run(tmp_path, 2)
    assert module.labels is not None
    assert len(module.labels) == 8
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    state = torch.load(tmp_path / "two.ckpt", weights_only=True)["state_dict"]["labels._extra_state"]
    assert state["labels"].shape == (8, 2, 2)
    assert ((state["labels"][:, 0, 1] < 1) & (state["labels"][:, 0, 1] > 0.75)).all()
    assert state["labels"][:, 1, 0].isnan().all()
    whole, resumed = run(tmp_path, 4)[0], run(tmp_path, 4, tmp_path / "two.ckpt")[0]
    assert torch.equal(weights(whole), weights(resumed))
    assert_close(whole.labels.get_extra_state(), resumed.labels.get_extra_state(), equal_nan=True, atol=0, rtol=0)  # pyright: ignore
    assert not torch.equal(weights(whole), weights(_without_smoothing(model, tmp_path)))


def _without_smoothing(model: str, folder: Path) -> RewardModel:
    module = make(model)
    make_trainer(folder, max_epochs=4).fit(module, pair_data(VOWELS[:8]))
    return module


def test_a_label_moves_when_its_pair_comes_round_again() -> None:
    labels = SmoothedLabels(0.25)
    nan = math.nan
    ids, pairs = torch.tensor([7, 9]), torch.tensor([[[nan, 1.0], [nan, nan]], [[nan, nan], [0.8, nan]]])
    margins = torch.tensor([[[0.0, 0.0], [0.0, 0.0]], [[0.0, -2.0], [2.0, 0.0]]])
    assert_close(labels.moved(ids, pairs, margins), pairs, equal_nan=True)
    again = labels.moved(ids.flip(0), pairs.flip(0), margins.flip(0))
    assert again[1, 0, 1] == 0.875
    assert float(again[0, 1, 0]) == pytest.approx(0.6 + 0.25 / (1 + math.exp(-2)))
    assert torch.equal(again.isnan(), pairs.flip(0).isnan())
    wider = torch.full((1, 3, 3), nan)
    wider[0, 0, 1] = wider[0, 2, 1] = 1.0  # a rollout in which another prompt has three
    found = labels.moved(torch.tensor([7]), wider, torch.zeros(1, 3, 3))
    assert found[0, 0, 1] == 0.75 * 0.875 + 0.125
    assert found[0, 2, 1] == 1.0
    other = SmoothedLabels(0.25)
    other.set_extra_state(labels.get_extra_state())
    assert len(other) == 2
    assert other.moved(torch.tensor([9]), pairs[1:], margins[1:])[0, 1, 0] < again[0, 1, 0] + 0.1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"data_smoothing": 1.0}, "at least 0 and below 1, got 1.0"),
        ({"data_smoothing": 0.1, "loss": PlackettLuce()}, "PlackettLuce reads who won, not how surely: .* or take `loss: BradleyTerry`"),
        ({"pairing": BestVersusWorst(soft=True), "loss": PlackettLuce()}, "the pairing's `soft` to false"),
    ],
)
def test_what_would_be_ignored_is_refused(options: dict[str, Any], message: str, model: str) -> None:
    with pytest.raises(UserError, match=message):
        make(model, **options)


def test_soft_labels_are_learnt_as_they_are(model: str, tmp_path: Path) -> None:
    """Scores of another reward model as labels: their own difference is the optimum."""
    module = make(model, pairing=AllPairs(soft=True), optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
    rows: list[Row] = [("ab", ["c", "d"], [1.5, 0.0])]
    make_trainer(tmp_path, max_epochs=150).fit(module, pair_data(rows, prompts_per_rollout=1, micro_batch_prompts=1))
    batch = batch_of(module, rows)
    values = module.values(batch)[0]
    assert float((values[0] - values[1]).detach()) == pytest.approx(1.5, abs=0.05)


def test_nothing_can_be_sampled(model: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="RewardModel trains no policy, so nothing can be sampled: give it fixed pairs"):
        make_trainer(tmp_path).fit(make(model), make_data())


def one_rank(rank: int, model: str, folder: Path, port: int) -> None:
    torch.set_num_threads(1)
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.save(trained(model, folder / "two", 2), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def trained(model: str, folder: Path, ranks: int) -> dict[str, Any]:
    module = make(model, data_smoothing=0.25)
    more: dict[str, Any] = {"strategy": DDPStrategy(process_group_backend="gloo"), "devices": 2} if ranks == 2 else {}
    trainer = make_trainer(folder, max_epochs=3, check_val_every_n_epoch=3, **more)
    trainer.fit(module, pair_data(LISTS, LISTS[:5], micro_batch_prompts=4 // ranks))
    assert module.labels is not None
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {"weights": weights(module), "metrics": metrics, "labels": dict(module.labels._labels)}


def test_two_processes_take_the_steps_of_one_and_hold_all_labels(model: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(one_rank, (model, tmp_path, port), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    alone = trained(model, tmp_path / "one", 1)
    assert torch.equal(first["weights"], second["weights"])
    assert_close(first["weights"], alone["weights"], atol=1e-5, rtol=1e-4)
    for found in (first, second):
        assert found["metrics"] == pytest.approx(alone["metrics"], rel=1e-3, abs=1e-4)
        assert found["labels"].keys() == alone["labels"].keys() == set(range(8))
        assert_close(found["labels"], alone["labels"], equal_nan=True, atol=1e-5, rtol=1e-4)
