"""The script for a GPU, with a toy on the CPU."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import command
from benchmarks.gpu.check import WrongError, check
from benchmarks.gpu.command import main
from benchmarks.gpu.goals import verdicts
from benchmarks.gpu.timing import Steps
from lit_align.models import static

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
        assert 0 < ours["trained"] < ours["frozen"]
        flops = 6 * ours["trained"] + 4 * ours["frozen"]
        assert ours["mfu"] == pytest.approx(flops * ours["training_tokens_per_second"] / result["flops"])
    assert [goal["met"] for goal in result["goals"]] == [None] * 3, "goals are about real models"


def test_what_is_fast_and_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = static.positions_of
    monkeypatch.setattr(static, "positions_of", lambda mask: right(mask) + 1)
    with pytest.raises(WrongError, match=r"other texts than plain ones in \d+ of 48 rows"):
        check(CPU)


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
