"""What is trained on, in which order, and from where after a restart."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.data.loader import LazyLoader, MicroBatch, RolloutLoader, derived_seed, schedule
from lit_align.types import AlignmentBatch, EncodedPrompt, Prompt
from tests.models.batches import as_batch, make_rollouts
from tests.tiny import make_dar, make_data, make_trainer, write_tiny

PROMPTS = [[4], [5, 6, 7], [8, 9], [10, 11, 12, 13]]
RESPONSES = [[[3, 1], [4, 5, 6, 1]], [[1], [7, 1]], [[8, 9, 1], [3]], [[5, 1], [5, 6, 1]]]
ROWS = [[0, 1], [2, 3], [2, 3], [0, 1]]


def normalisers(i: int) -> dict[str, torch.Tensor]:
    return {"response_normaliser": torch.tensor(10.0 + i), "token_normaliser": torch.tensor(20.0 + i)}


@pytest.fixture
def loader() -> RolloutLoader:
    plan = [MicroBatch(torch.tensor(rows), normalisers(i), 30 + i) for i, rows in enumerate(ROWS)]
    return RolloutLoader(as_batch(make_rollouts(PROMPTS, RESPONSES, pad_id=0)), plan)


def ids(batches: Any) -> list[list[int]]:
    return [batch.prompt_ids.tolist() for batch in batches]


PLANNED = [[100 + row for row in rows] for rows in ROWS]


def test_micro_batches_are_the_plans_narrow_and_complete(loader: RolloutLoader) -> None:
    batches = list(loader)
    assert len(loader) == len(batches) == 4
    assert ids(batches) == PLANNED
    for i, batch in enumerate(batches):
        assert (batch.response_normaliser, batch.token_normaliser, batch.dropout_seed) == (10 + i, 20 + i, 30 + i)
    assert [tuple(batch.prompt_tokens.shape) for batch in batches[:2]] == [(2, 3), (2, 4)]
    assert [tuple(batch.response_tokens.shape) for batch in batches[:2]] == [(2, 2, 4), (2, 2, 3)]


def test_iter_alone_moves_nothing(loader: RolloutLoader) -> None:
    first, second = iter(loader), iter(loader)
    iter(loader)
    assert loader.state_dict() == {"position": 0}
    assert ids(first) == ids(second) == PLANNED
    assert ids(loader) == PLANNED, "a second epoch is the same"


def test_the_position_counts_what_was_given_out(loader: RolloutLoader) -> None:
    reading = iter(loader)
    for given in range(1, 5):
        next(reading)
        assert loader.state_dict() == {"position": given}
    assert next(reading, None) is None
    assert loader.state_dict() == {"position": 4}


@pytest.mark.parametrize("position", range(5))
def test_a_restart_begins_where_it_was_and_only_once(position: int, loader: RolloutLoader) -> None:
    loader.load_state_dict({"position": position})
    assert len(loader) == 4, "Lightning counts from the beginning"
    unread = iter(loader)  # Lightning calls iter twice before the first next
    again = iter(loader)
    assert ids(again) == PLANNED[position:]
    assert ids(unread) == PLANNED
    assert ids(loader) == PLANNED


def test_lazy_batches_are_made_when_they_are_read() -> None:
    made: list[int] = []

    def make(chunk: list[EncodedPrompt]) -> int:
        made.append(chunk[0].prompt.id)
        return len(chunk)

    prompts = [EncodedPrompt(Prompt(i, "a"), (3,)) for i in range(3)]
    loader = LazyLoader([prompts[:2], prompts[2:]], make)
    reading = iter(loader)
    assert (len(loader), made) == (2, [])
    assert (next(reading), made) == (2, [0])
    assert (list(reading), made) == ([1], [0, 2])
    assert (list(loader), made) == ([2, 1], [0, 2, 0, 2]), "again, of the policy as it is then"


@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("inner", [1, 3])
def test_a_schedule_takes_every_step_once_in_every_inner_epoch(steps: int, inner: int) -> None:
    order = schedule(steps, inner, seed=0, rollout=2)
    assert order[:steps] == list(range(steps)), "first as sampled"
    assert [sorted(order[i : i + steps]) for i in range(0, len(order), steps)] == [list(range(steps))] * inner


def test_a_schedule_is_of_the_seed_the_rollout_and_the_inner_epoch() -> None:
    order = schedule(8, 4, 0, 0)
    torch.manual_seed(5)
    assert schedule(8, 4, 0, 0) == order
    assert schedule(8, 3, 0, 0) == order[:24], "one more inner epoch changes nothing before it"
    turns = [order[8:16], order[16:24], order[24:], schedule(8, 2, 0, 1)[8:], schedule(8, 2, 1, 0)[8:]]
    assert len({tuple(turn) for turn in [*turns, list(range(8))]}) == 6


def test_derived_seeds_are_stable_different_and_fit_torch() -> None:
    assert derived_seed(0, "dropout", 1, 2, 3) == derived_seed(0, "dropout", 1, 2, 3)
    seeds = {derived_seed(*parts) for parts in [(0, 1), (1, 0), (0, 1, 0), ("01",), (0,), ("order", 0, 1)]}
    assert len(seeds) == 6
    assert all(0 <= seed < 2**63 for seed in seeds)
    torch.manual_seed(max(seeds))


class Seeds:
    """The dropout seeds of every rank of a run, by ranks that were never started."""

    def __init__(self, root: Path) -> None:
        self.root, self.model = root, write_tiny(root / "tiny")

    def of(self, rank: int, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[int]:
        batches: list[AlignmentBatch] = []
        module, data = make_dar(self.model), make_data(micro_batch_prompts=2, inner_epochs=2, **options)
        trainer = make_trainer(self.root / "run", max_epochs=2)
        original = data._loader

        def recorded(number: int, batch: AlignmentBatch) -> RolloutLoader:
            with monkeypatch.context() as patch:
                patch.setattr(type(trainer), "global_rank", rank)
                loader = original(number, batch)
            batches.extend(loader)
            return loader

        monkeypatch.setattr(data, "_loader", recorded)
        trainer.fit(module, data)
        seeds = [batch.dropout_seed for batch in batches]
        assert None not in seeds
        return seeds  # type: ignore[return-value]


def test_every_micro_batch_of_every_rank_and_rollout_has_dropout_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Seeds(tmp_path)
    first, second = run.of(0, monkeypatch), run.of(1, monkeypatch)
    assert len(first) == len(second) == 2 * 2 * 4
    assert len({*first, *second}) == 32
    assert run.of(0, monkeypatch) == first
    assert set(run.of(0, monkeypatch, seed=1)).isdisjoint(first)


def test_the_loader_leaves_the_rollout_as_it_was(loader: RolloutLoader) -> None:
    before = loader.batch.map_tensors(lambda tensor, _: tensor.clone())
    for batch in loader:
        batch.scores.fill_(9.0)
        batch.response_tokens.zero_()
    for (name, now, _), (_, then, _) in zip(loader.batch.tensors(), before.tensors(), strict=True):
        assert torch.equal(now, then), name
    assert replace(loader.batch).dropout_seed is None
