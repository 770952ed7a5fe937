"""Two processes train as one does."""

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.models import CausalPolicy
from lit_align.types import UserError
from tests.annotators.test_reward_model import write_reward_model
from tests.data.test_preferences import data_of, many, moving
from tests.tiny import make_dar, make_data, make_trainer
from tests.wheel import ranks
from tests.wheel.harness import Scores, differing, fit, patchy
from tests.wheel.test_dynamic import some_flat
from tests.wheel.test_mixed import make_sail, mixed
from tests.wheel.test_normaliser import assert_same, dar, demonstrations, expected_of_dar, expected_of_sft
from tests.wheel.test_readings import held_out, mixture
from tests.wheel.test_resume import everything

ROOT = Path(__file__).parents[2]
SECONDS = 240


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def both(tiny_with_dropout: str, tiny: str, folder: Path) -> list[dict[str, Any]]:
    """What each rank saw; started once for all tests here."""
    write_reward_model(folder / "reward")  # transformers writes no model on the second rank
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0", "OMP_NUM_THREADS": "1"}
    logs = [(folder / f"rank-{rank}.log").open("w") for rank in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.wheel.ranks", tiny, tiny_with_dropout, str(folder)],
            cwd=ROOT,
            env=os.environ | shared | {"LOCAL_RANK": str(rank), "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=log,
        )
        for rank, log in enumerate(logs)
    ]
    codes: list[int | None] = [None, None]
    try:
        codes = [process.wait(SECONDS) for process in processes]
    except subprocess.TimeoutExpired:
        pass
    finally:
        for process, log in zip(processes, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
    said = [Path(log.name).read_text()[-4000:] for log in logs]
    assert codes == [0, 0], "\n\n".join(said)
    return [torch.load(folder / f"rank-{rank}.pt", weights_only=False) for rank in range(2)]


def policy_weights(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix("policy."): value for name, value in state.items() if name.startswith("policy.")}


@pytest.mark.parametrize("split", ["4x1", "2x2"])
def test_the_mean_is_over_the_responses_of_both(split: str, both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    one = fit(root, tiny, module=dar(tiny), annotator=Scores(patchy), micro_batch_prompts=8, trainer={"max_epochs": 1})
    expected, start = expected_of_dar(tiny, one), dict(CausalPolicy(tiny).named_parameters())
    for rank in both:
        assert_same(policy_weights(rank["normalisers"][f"dar {split}"]), expected, start)
    assert both[0]["normalisers"][f"valid {split}"] != both[1]["normalisers"][f"valid {split}"], (
        "the ranks differ, so a mean of means is wrong"
    )


def test_an_adapter_trains_as_in_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    one = fit(root, tiny, module=ranks.adapted(tiny), micro_batch_prompts=4, trainer=ranks.FIVE_STEPS)
    assert differing(policy_weights(both[0]["adapter"]["state"]), policy_weights(both[1]["adapter"]["state"])) == []
    assert both[0]["adapter"]["losses"] == pytest.approx(one.recorder.losses, abs=1e-4)
    assert set(policy_weights(both[0]["adapter"]["state"])) == set(policy_weights(one.state))
    for name, value in policy_weights(one.state).items():
        torch.testing.assert_close(both[0]["adapter"]["state"][f"policy.{name}"], value, atol=1e-4, rtol=0)


def test_both_have_the_same_reward_model_and_it_is_that_of_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    annotator = ranks.learner(write_reward_model(root / "reward"))
    one = fit(root, tiny, module=ranks.steady(tiny), micro_batch_prompts=4, trainer=ranks.FIVE_STEPS, annotator=annotator)
    state, (first, second) = annotator.state_dict(), (rank["refreshed"] for rank in both)
    assert differing(first["weights"], second["weights"]) == []
    assert first["version"] == state["version"] == 3
    assert first["known"] == second["known"] == state["known"], "the same prompts and texts, in the same order"
    for name, weight in state["weights"].items():
        torch.testing.assert_close(first["weights"][name], weight, atol=1e-4, rtol=0)
    assert first["metrics"][-1]["refresh/accuracy"] == second["metrics"][-1]["refresh/accuracy"]
    assert first["metrics"][-1]["labels/used"] == one.recorder.metrics[-1]["labels/used"] == 3 * 8 * 4 + 2 * 5 * 4
    assert differing(policy_weights(first["state"]), policy_weights(second["state"])) == []


def test_both_have_the_same_moving_reference(both: list[dict[str, Any]]) -> None:
    one, other = (rank["anchored"]["state"] for rank in both)
    assert differing(one, other) == []
    kept = [name for name in one if name.startswith("reference_weights.") and "lora_B" in name]
    assert kept
    assert all(one[name].abs().max() > 0 for name in kept), "it has moved"


@pytest.mark.parametrize("split", ["4x1", "2x2"])
def test_the_mean_is_over_the_tokens_of_both(split: str, both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    expected, start = expected_of_sft(tiny, demonstrations(root, 8)), dict(CausalPolicy(tiny).named_parameters())
    for rank in both:
        assert_same(policy_weights(rank["normalisers"][f"sft {split}"]), expected, start)


def test_a_step_is_the_same_prompts_on_both_together(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    alone = fit(root, tiny, micro_batch_prompts=4, prompts_per_rollout=16, inner_epochs=3).recorder.steps(1)
    for split in ("2x1", "1x2"):
        mine, others = both[0]["order"][split], both[1]["order"][split]
        assert all(a.isdisjoint(b) for a, b in zip(mine, others, strict=True))
        assert [a | b for a, b in zip(mine, others, strict=True)] == alone


def test_samples_and_losses_are_those_of_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    one = fit(root, tiny, module=ranks.mild(tiny), trainer=ranks.FIVE_STEPS, micro_batch_prompts=4)
    together = [a | b for a, b in zip(both[0]["losses"]["texts"], both[1]["losses"]["texts"], strict=True)]
    assert together == ranks.texts(one.recorder)
    assert len(one.recorder.losses) == 6
    for rank in both:
        assert rank["losses"]["losses"][:5] == pytest.approx(one.recorder.losses[:5], abs=1e-5, rel=0)
        assert rank["losses"]["metrics"][0] == pytest.approx(one.recorder.metrics[0], abs=1e-5)
    assert differing(both[0]["losses"]["state"], both[1]["losses"]["state"]) == []


def test_sharded_weights_train_as_in_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    one = fit(root, tiny, module=ranks.mild(tiny), callbacks=ranks.watching(), trainer=ranks.SHARDED, micro_batch_prompts=4, **ranks.LONG)
    first, second = (rank["sharded"] for rank in both)
    assert first["kinds"] == {"DTensor"}
    assert first["chunks"] != second["chunks"], "one rank decodes for longer than the other"
    assert first["losses"] == second["losses"] == pytest.approx(one.recorder.losses, rel=1e-5)
    assert first["metrics"] == pytest.approx(one.recorder.metrics[-1], rel=1e-3, abs=1e-5)
    assert first["metrics"]["train/gradient_norm"] > 1.5, "of both ranks' shards, and before clipping"
    for name, value in policy_weights(one.state).items():
        torch.testing.assert_close(first["weights"][name], value, atol=1e-4, rtol=0)


def test_sharded_weights_come_back_from_a_checkpoint(both: list[dict[str, Any]], folder: Path) -> None:
    assert (folder / "sharded.ckpt").is_file()
    for rank in both:
        assert rank["sharded"]["rest"] == rank["sharded"]["losses"][2:]


def test_a_sharded_adapter_is_refused(both: list[dict[str, Any]]) -> None:
    assert "Use strategy ddp" in both[0]["sharded"]["refused"]


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_a_copy_in_bfloat16_follows_the_policy_on_both(strategy: str, both: list[dict[str, Any]]) -> None:
    first, second = (rank["rounded"][strategy] for rank in both)
    assert first["metrics"] == second["metrics"]
    assert all(1e-4 < metrics["engine/logp_difference"] < 0.03 for metrics in first["metrics"])
    assert not first["texts"][1].keys() & second["texts"][1].keys(), "each drew for its own prompts"


@pytest.mark.parametrize("moment", ["end", "after-2", "after-5"])
def test_a_resumed_run_ends_where_the_whole_one_does(moment: str, both: list[dict[str, Any]]) -> None:
    assert [rank["resumed"][moment] for rank in both] == [[], []]
    assert both[0]["resumed"]["steps"] == 3 * 4


def test_another_number_of_processes_is_refused(both: list[dict[str, Any]], tiny_with_dropout: str, folder: Path, root: Path) -> None:
    with pytest.raises(UserError, match=r"a rollout of 2 processes, this run has 1\. Resume with as many"):
        fit(root, tiny_with_dropout, module=everything(tiny_with_dropout), ckpt_path=folder / "end.ckpt", **ranks.RESUME)


def test_an_evaluation_needs_no_such_number(both: list[dict[str, Any]], tiny_with_dropout: str, folder: Path, root: Path) -> None:
    data = make_data(**ranks.HELD_OUT)
    (result,) = make_trainer(root).validate(everything(tiny_with_dropout), data, ckpt_path=folder / "end.ckpt", verbose=False)
    assert result["val/kl_reference"] > 1e-3


@pytest.mark.parametrize("scenario", ["one_bad_rank", "one_bad_gradient"])
def test_neither_moves_where_one_has_an_infinite_loss_or_gradient(scenario: str, both: list[dict[str, Any]]) -> None:
    for rank in both:
        assert rank[scenario]["skipped"] == ["skipped_steps"]
        assert "policy.model.model.norm.weight" in rank[scenario]["taken"]
        assert all(value.isfinite().all() for value in rank[scenario]["state"].values())
    assert differing(both[0][scenario]["state"], both[1][scenario]["state"]) == []


def test_a_rank_without_valid_rows_takes_the_other_s_step(both: list[dict[str, Any]]) -> None:
    for rank in both:
        assert rank["one_silent_rank"]["skipped"] == 0
        assert rank["one_silent_rank"]["metrics"]["labels/invalid"] == 16.0
        assert rank["one_silent_rank"]["metrics"]["labels/used"] == 32.0
    assert differing(both[0]["one_silent_rank"]["state"], both[1]["one_silent_rank"]["state"]) == []


def test_held_out_scores_are_averaged_over_both(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    """Nine prompts: the ranks have five and four, in chunks of four."""
    options = ranks.HELD_OUT | {"eval_annotator": Scores(patchy)}
    (one,) = make_trainer(root).validate(make_dar(tiny), make_data(**options), verbose=False)
    for rank in both:
        assert rank["evaluation"]["shared"] == pytest.approx(one, abs=1e-5)
        assert 0 < rank["evaluation"]["silent"]["val/reward"] < 1
    options |= {"chunk_prompts": 9, "module": ranks.mild(tiny), "micro_batch_prompts": 4}
    alone = fit(root, tiny, trainer={"max_epochs": 1, "check_val_every_n_epoch": 1}, **options)
    for rank in both:
        assert rank["evaluation"]["fitted"] == pytest.approx(alone.recorder.metrics[0], abs=1e-5)


def test_a_mixture_is_read_as_by_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    one = fit(root, tiny, module=ranks.mild(tiny), trainer=ranks.FIVE_STEPS, micro_batch_prompts=4, prompts=mixture(root))
    together = [{**a, **b} for a, b in zip(both[0]["mixed"]["texts"], both[1]["mixed"]["texts"], strict=True)]
    assert [{*said} for said in together] == [{*said} for said in ranks.texts(one.recorder)]
    for rank in both:
        for found, expected in zip(rank["mixed"]["metrics"], one.recorder.metrics, strict=True):
            assert found.keys() == expected.keys()
            assert {k: v for k, v in found.items() if k.startswith(("reward", "prompts"))} == pytest.approx(
                {k: v for k, v in expected.items() if k.startswith(("reward", "prompts"))}, abs=1e-4
            )
        assert "reward/rare" in rank["mixed"]["metrics"][-1]
    assert any((here == 0) != (there == 0) for here, there in zip(both[0]["mixed"]["rare"], both[1]["mixed"]["rare"], strict=True))


def test_callbacks_compare_ranks_one_of_which_has_no_fresh_row(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    data = mixed(**ranks.PARTLY_FRESH)
    one = fit(root, tiny, module=make_sail(tiny), data=data, trainer={"max_epochs": 6}, callbacks=ranks.comparing())
    here, there = (rank["partly_fresh"] for rank in both)
    assert [a + b for a, b in zip(here["fresh"], there["fresh"], strict=True)] == [len(r.prompts) for r in one.recorder.rollouts]
    assert any((a == 0) != (b == 0) for a, b in zip(here["fresh"], there["fresh"], strict=True))
    for rank in (here, there):
        for found, expected in zip(rank["metrics"], one.recorder.metrics, strict=True):
            assert found.keys() == expected.keys()
            compared = {name: value for name, value in expected.items() if name.startswith(("kl/", "rows/"))}
            assert {name: found[name] for name in compared} == pytest.approx(compared, abs=1e-4)


def test_a_search_finds_on_both_what_it_finds_on_one(both: list[dict[str, Any]], tiny: str, root: Path, folder: Path) -> None:
    one = fit(
        root, tiny, module=ranks.mild(tiny), trainer=ranks.FIVE_STEPS, micro_batch_prompts=4, annotator=Scores(some_flat), **ranks.SEARCH
    )
    together = [a | b for a, b in zip(both[0]["dynamic"]["texts"], both[1]["dynamic"]["texts"], strict=True)]
    assert together == ranks.texts(one.recorder)
    for rank in both:
        for found, expected in zip(rank["dynamic"]["metrics"], one.recorder.metrics, strict=True):
            assert found.keys() == expected.keys()
            for name in ("rollout/extra_prompts", "rollout/without_spread", "labels/used", "reward/mean"):
                assert found[name] == pytest.approx(expected[name]), name
    assert [metrics["rollout/extra_prompts"] for metrics in one.recorder.metrics] == [4, 4, 1], "the budget ends, and it does not"
    journals = [folder / "dynamic" / "journal" / f"labels-{rank}.jsonl" for rank in range(2)]
    assert len({len(journal.read_text(encoding="utf-8").splitlines()) for journal in journals}) == 2, "one searched longer"
    assert differing(both[0]["dynamic"]["state"], both[1]["dynamic"]["state"]) == []


def test_held_out_rewards_of_every_dataset_are_those_of_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    data = make_data(eval_prompts=held_out(), eval_annotator=Scores())
    (one,) = make_trainer(root).validate(make_dar(tiny), data, verbose=False)
    for rank in both:
        assert rank["mixed"]["evaluation"] == pytest.approx(one, abs=1e-5)


def test_the_folder_of_a_run_holds_both_journals(both: list[dict[str, Any]], folder: Path) -> None:
    assert sorted(path.name for path in (folder / "losses" / "journal").iterdir()) == ["labels-0.jsonl", "labels-1.jsonl"]


def test_fixed_lists_train_and_are_measured_as_in_one_process(both: list[dict[str, Any]], tiny: str, root: Path) -> None:
    data = data_of(many(), many()[:7], each=8, micro=4)
    (before,) = make_trainer(root).validate(moving(tiny), data, verbose=False)
    one = fit(root, tiny, module=moving(tiny), data=data, trainer=ranks.FIXED | {"accumulate_grad_batches": 2})
    first, second = (rank["fixed"] for rank in both)
    assert first["before"] == pytest.approx(before, abs=1e-6)
    assert differing(first["state"], second["state"]) == []
    assert first["losses"] == pytest.approx(one.recorder.losses, abs=1e-4)
    assert first["metrics"] == second["metrics"] == pytest.approx(one.recorder.metrics[-1], rel=1e-3, abs=1e-3)
    assert one.recorder.metrics[-1]["val/loss"] < before["val/loss"] - 1e-3


def test_both_end_where_their_money_does(both: list[dict[str, Any]], folder: Path) -> None:
    """A rollout costs 32 on one rank and nothing on the other: two of them fit into 70, by the sum, which both know."""
    for rank in both:
        found = rank["budget"]
        assert (found["rollouts"], found["rest"]) == (2, 1)
        assert found["differing"] == []
        assert [metrics["cost/price"] + 2 * metrics["cost/hits"] for metrics in found["metrics"]] == [32.0, 32.0]
        assert found["metrics"][-1]["cost/calls"] == both[0]["budget"]["metrics"][-1]["cost/calls"]
        assert found["spent"] <= 16
    assert [path.name for path in sorted((folder / "budget" / "ledger").iterdir())] == ["calls-1.sqlite", "cost.jsonl"]
    assert len((folder / "budget" / "ledger" / "cost.jsonl").read_text(encoding="utf-8").splitlines()) == 3
