"""The script for a GPU, with a toy on the CPU."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import check as gpu_check
from benchmarks.gpu import command
from benchmarks.gpu.case import SHAPES, Case, write_model
from benchmarks.gpu.check import WrongError, check
from benchmarks.gpu.command import main
from benchmarks.gpu.goals import verdicts
from benchmarks.gpu.ours import flops_of
from benchmarks.gpu.timing import Steps
from lit_align.models import CausalPolicy, LoRA, static
from lit_align.models.decoding import RowCache
from lit_align.models.static import StaticRows
from lit_align.types import Rollouts

CPU = torch.device("cpu")


def test_everything_runs_without_a_gpu_and_without_the_peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "hush", lambda: None)
    result = main(["all", "--toy", "--repeats", "1", "--out", str(tmp_path / "new" / "gpu.jsonl")])
    assert json.loads((tmp_path / "new" / "gpu.jsonl").read_text()) == json.loads(json.dumps(result))
    assert result["size"] == "toy"
    assert result["check"]["other_rows"] <= 1
    assert "tree" in result["check"]["layouts"]
    rollout = result["rollout"]
    assert rollout["n"] == 1
    assert rollout["tokens_per_second"].keys() == {"ours", "generate"}
    assert rollout["low"] <= rollout["ratio"] <= rollout["high"]
    assert rollout["of_the_roof"]["ours"] == pytest.approx(rollout["tokens_per_second"]["ours"] / rollout["roof"])
    for algorithm in ("rloo", "online_dpo"):
        ours = result[algorithm]["ours"]
        assert result[algorithm]["trl"].startswith("missing")
        assert ours["n"] == 1
        assert ours["training_tokens_per_second"] == pytest.approx(16 * (8 + 8) / ours["training_seconds"]), "a prompt for each response"
        assert ours["rollout_tokens_per_second"] == pytest.approx(16 * 8 / ours["rollout_seconds"])
        assert ours["mfu"] == pytest.approx(ours["flops"] / ours["training_seconds"] / result["flops"])
    assert [goal["met"] for goal in result["goals"]] == [None] * 3, "goals are about real models"


def test_what_is_fast_and_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = static.positions_of
    monkeypatch.setattr(static, "positions_of", lambda mask: right(mask) + 1)
    with pytest.raises(WrongError, match=r"other texts than plain ones in \d+ of 48 rows"):
        check(CPU)


def test_a_row_that_is_another_draw_has_to_be_a_tie(monkeypatch: pytest.MonkeyPatch) -> None:
    right = gpu_check.drawn

    def one_is_wrong(policy: CausalPolicy, way: type[RowCache], device: torch.device) -> Rollouts:
        found = right(policy, way, device)
        if way is StaticRows:
            found.response_tokens[3, 2, 1] += 1
        return found

    monkeypatch.setattr(gpu_check, "drawn", one_is_wrong)
    with pytest.raises(WrongError, match=r"in 1 of 48 rows \(the best token by [1-9]"):
        check(CPU)
    monkeypatch.setattr(gpu_check, "TIE", 1e3)
    assert check(CPU)["other_rows"] == 1


def test_products_that_a_step_needs_are_counted_by_hand(tmp_path: Path) -> None:
    """A layer of the toy has 1056 weights of queries, 2 x 528 of keys and values, 1024 of what they give, 6144 of the MLP and 64 of
    norms; there are two, and 32 of the last norm; head and embedding are one."""
    layers, head = 2 * 9344 + 32, 512 * 32
    write_model(tmp_path, SHAPES["toy"], 64, CPU, torch.float32)
    policy = CausalPolicy(str(tmp_path))
    assert flops_of(policy, prompts=10, responses=20) == 6 * (layers * 30 + head * 20)
    adapted = CausalPolicy(str(tmp_path), lora=LoRA())
    adapter = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert flops_of(adapted, prompts=10, responses=20) == 4 * (layers * 30 + head * 20) + 6 * adapter * 30
    write_model(tmp_path, replace(SHAPES["toy"], tied=False), 64, CPU, torch.float32)
    untied = CausalPolicy(str(tmp_path))
    assert flops_of(untied, prompts=10, responses=20) == 6 * (layers * 30 + head * 20), "an embedding is looked up"


def test_a_run_that_takes_too_long_is_broken_off_with_what_it_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(what: str, case: Case, folder: Path, device: torch.device, result: dict[str, Any]) -> None:
        result["rollout"] = {"ratio": 9.0}
        try:
            while True:
                time.sleep(0.01)
        except Exception:
            pytest.fail("what is measured may not take it for its own")

    monkeypatch.setattr(command, "measure", endless)
    monkeypatch.setattr(command, "check", lambda device: {"rows": 48})
    monkeypatch.setattr(command, "hush", lambda: None)
    result = main(["rollout", "--toy", "--end", "0.2", "--out", str(tmp_path / "gpu.jsonl")])
    assert json.loads((tmp_path / "gpu.jsonl").read_text()) == result
    assert (result["check"], result["rollout"], result["broken_off"]) == ({"rows": 48}, {"ratio": 9.0}, {"seconds": 0.2})
    time.sleep(0.3)  # and nothing rings afterwards


def test_goals_say_whether_they_were_met() -> None:
    rollout = {"ratio": 8.0, "of_the_roof": {"ours": 0.39}}
    small: dict[str, Any] = {"size": "0.5b", "rollout": rollout, "rloo": {"ours": {"mfu": 0.5}}}
    assert [goal["met"] for goal in verdicts(small)] == [True, False, None]
    assert [goal["met"] for goal in verdicts(small | {"size": "7b"})] == [None, False, True]
    assert [goal["found"] for goal in verdicts({"size": "7b"})] == [None] * 3


def test_sampling_and_the_rest_of_a_step_are_timed_apart() -> None:
    class Hands:
        time, over, peak = 0.0, False, 1.5

        def now(self) -> float:
            return self.time

    clock: Any = Hands()
    steps = Steps(clock)

    def take(seconds: float) -> float:
        clock.time += seconds
        return seconds

    for sampling, training in ((50.0, 60.0), (2.0, 4.0), (3.0, 8.0)):
        take(training / 2)
        assert steps.sample(lambda s=sampling: take(s)) == sampling
        take(training / 2)
        assert steps.end()
    clock.over = True
    steps.sample(lambda: take(4.0))
    take(9.0)
    assert not steps.end()
    line = steps.line(response_tokens=30, read_tokens=80)
    assert line == {
        "rollout_tokens_per_second": 10.0,
        "training_tokens_per_second": 10.0,
        "rollout_seconds": 3.0,
        "training_seconds": 8.0,
        "peak_gib": 1.5,
        "n": 3,
    }


@pytest.mark.parametrize(
    ("arguments", "said"), [(["rollout", "--size", "7b"], "--toy"), (["all", "--toy", "--sequences", "12"], "multiple of --micro-batch")]
)
def test_what_it_refuses(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(arguments)
    assert said in capsys.readouterr().err
