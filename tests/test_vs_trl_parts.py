"""Where a step's time goes: clocks that count no second twice, around the product's real loop; and DAR beside RLOO."""

import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import final

import pytest
from lightning.pytorch import Callback

from benchmarks.vs_trl import memory, ours, rows
from benchmarks.vs_trl.case import Algorithm, Case, published
from benchmarks.vs_trl.floor import Machine
from benchmarks.vs_trl.measure import measure
from benchmarks.vs_trl.parts import LOOP, PARTS, Clock, Watch, loop_share, profile
from benchmarks.vs_trl.plan import Planned
from benchmarks.vs_trl.summary import Spread, Turn
from benchmarks.vs_trl.turns import Relay
from benchmarks.vs_trl.world import make_world
from tests.tiny import write_tiny

TEXTS = [f"{word} abc def ghij ab cd" * 3 for word in ("a", "bc", "def", "jj", "cab", "hid", "fed", "gab")]


def ticking(seconds: list[float]) -> Clock:
    """A clock of a machine whose time only passes as ``seconds`` are appended."""
    return Clock(lambda: sum(seconds))


def test_a_part_inside_another_stops_its_clock() -> None:
    seconds: list[float] = []
    clock = ticking(seconds)
    forward = clock.timed("forward", lambda: seconds.append(2.0))
    closure = clock.timed(LOOP, lambda: (seconds.append(0.5), forward()))
    step = clock.timed("optimizer", lambda: (seconds.append(4.0), closure(), seconds.append(8.0)))

    seconds.append(100.0)  # before the loop begins
    end = clock.around(lambda *tokens: bool(seconds.append(1000.0)))  # the other side's turn
    seconds.append(0.25)
    step()
    end(1, 1)
    forward()
    end(1, 1)
    assert clock.turns == [{LOOP: 0.75, "optimizer": 12.0, "forward": 2.0}, {LOOP: 0.0, "forward": 2.0}]


def test_a_part_that_fails_has_ended() -> None:
    seconds: list[float] = []
    clock = ticking(seconds)
    end = clock.around(lambda *tokens: True)

    def broken() -> None:
        seconds.append(1.0)
        raise KeyError

    with pytest.raises(KeyError):
        clock.timed("labels", broken)()
    seconds.append(2.0)
    end(1, 1)
    assert clock.turns == [{"labels": 1.0, LOOP: 2.0}]


def test_end_of_turn_is_asked_with_its_tokens_and_answers() -> None:
    said: list[tuple[int, int]] = []
    end = Clock().around(lambda *tokens: bool(said.append(tokens)) or len(said) < 2)
    assert [end(3, 5), end(4, 6)] == [True, False]
    assert said == [(3, 5), (4, 6)]


def test_shares_are_of_each_turn() -> None:
    turns = [{"forward": 9.0, LOOP: 1.0}, {"forward": 2.0, LOOP: 2.0}, {"forward": 8.0, LOOP: 2.0}]
    assert loop_share(turns) == Spread(0.2, 0.1, 0.5)
    assert profile([*turns, {LOOP: 3.0, "labels": 2.0}]) == {"labels": 0.5, "forward": 4.75, LOOP: 2.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"), context=128, bos_token_id=None)


@pytest.mark.parametrize(
    ("algorithm", "absent"),
    [("online_dpo", set()), ("grpo", set()), ("sft", {"sampling", "labels", "reference"}), ("dpo", {"sampling", "labels"})],
)
def test_the_parts_of_a_real_step_are_the_step(algorithm: Algorithm, absent: set[str], tiny: str, tmp_path: Path) -> None:
    case = replace(published(algorithm, tiny, 1), prompts=4, prompt_tokens=8, response_tokens=6)
    world, clock = make_world(case, TEXTS), Clock()
    module, data = ours.make_module(case, ours.make_policy(case, world)), ours.make_data(case, world)
    watched, turns = Watch(clock, module, data), Relay(["ours"], turns=2, warm_up=1, limit=60)
    loops = {"ours": lambda end: ours.fit(module, data, tmp_path / "run", 3, [watched, ours.Hand(clock.around(end))])}
    taken: list[Turn] = turns.run(loops, threads=1)["ours"]
    found = clock.turns[1:]
    assert [set(turn) for turn in found] == [{*PARTS, LOOP} - absent] * 2
    assert all(seconds > 0 for turn in found for seconds in turn.values())
    for turn, whole in zip(found, taken, strict=True):
        assert sum(turn.values()) == pytest.approx(whole.cpu, abs=2e-3)


@final
class Slow(Callback):
    """Takes 50 ms where Lightning calls it within the optimizer's step."""

    def on_before_zero_grad(self, *arguments: object) -> None:
        start = time.process_time()
        while time.process_time() < start + 0.05:
            pass


def test_what_callbacks_do_within_the_optimizers_step_is_not_the_optimizers(tiny: str, tmp_path: Path) -> None:
    case = replace(published("sft", tiny, 1), prompts=4, prompt_tokens=8, response_tokens=6)
    world, clock = make_world(case, TEXTS), Clock()
    module, data = ours.make_module(case, ours.make_policy(case, world)), ours.make_data(case, world)
    hand = ours.Hand(clock.around(lambda *tokens: len(clock.turns) < 2))
    ours.fit(module, data, tmp_path / "run", 2, [Watch(clock, module, data), Slow(), hand])
    assert clock.turns[1][LOOP] > 0.05 > clock.turns[1]["optimizer"]


# DAR beside RLOO


@pytest.fixture
def dar(tiny: str, monkeypatch: pytest.MonkeyPatch) -> Case:
    monkeypatch.setattr("benchmarks.vs_trl.floor.measure", lambda threads: Machine(1e11, 1e10))
    return replace(published("dar", tiny, 1), prompts=4, prompt_tokens=8, response_tokens=6)


def test_dar_is_measured_beside_rloo_of_the_same_policy(dar: Case) -> None:
    result = measure(Planned(dar, steps=2, memory=False), TEXTS, limit=60)
    assert list(result["sides"]) == list(result["parts"]) == list(result["loop"]) == ["dar", "rloo"]
    assert (result["n"], result["asked"], result["agreement"]) == (2, {"steps": 2, "memory": 0}, {})
    assert all("reference" in parts for parts in result["parts"].values()), "both hold one"
    for side, parts in result["parts"].items():  # of two steps the median is the mean
        assert sum(parts.values()) == pytest.approx(result["sides"][side]["cpu"], abs=2e-3), "of the timed steps, not of the first"
    assert result["name"].startswith("dar / rloo ")
    assert rows.dar_line(result)[3] == "2"


def test_the_ratio_is_dars_time_by_rloos(dar: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(relay: Relay, loops: object, threads: int) -> dict[str, list[Turn]]:
        return {"dar": [Turn(3.0, 4.0, 9, 10)], "rloo": [Turn(2.0, 2.0, 9, 20)]}

    monkeypatch.setattr(Relay, "run", run)
    monkeypatch.setattr("benchmarks.vs_trl.measure.loop_share", lambda turns: Spread(0.0, 0.0, 0.0))
    ratio = measure(Planned(dar, steps=1, memory=False), TEXTS, limit=60)["ratio"]
    assert (ratio["cpu"]["median"], ratio["wall"]["median"]) == pytest.approx((4.0, 3.0))


def test_time_before_the_first_round_counts(dar: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[float] = []

    def remember(relay: Relay, sides: list[str], turns: int, warm_up: int, limit: float) -> None:
        limits.append(limit)
        raise TimeoutError

    monkeypatch.setattr(Relay, "__init__", remember)
    with pytest.raises(TimeoutError):
        measure(Planned(dar, steps=1, memory=False), TEXTS, limit=50.0)
    assert 0 < limits[0] < 50.0


def test_a_case_without_a_round_in_time_has_no_numbers(dar: Case) -> None:
    with pytest.raises(TimeoutError, match="no round"):
        measure(Planned(dar, steps=2, memory=False), TEXTS, limit=0.0)


# Processes that measure memory


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, float]]:
    """Which sides were asked for, and for how long at most: TRL's fails, the other holds 12 MiB."""
    found: list[tuple[str, float]] = []

    def run(command: list[str], timeout: float, **options: object) -> object:
        found.append((command[command.index("--peak") + 1], timeout))
        if found[-1][0] == "trl":
            raise memory.subprocess.TimeoutExpired(command, timeout)
        return type("Said", (), {"stdout": "words\n12.5\n"})

    (tmp_path / "clear_refs").touch()
    monkeypatch.setattr(memory, "RESET", tmp_path / "clear_refs")
    monkeypatch.setattr(memory.subprocess, "run", run)
    return found


def test_a_side_that_takes_too_long_has_no_peak(asked: list[tuple[str, float]], capsys: pytest.CaptureFixture[str]) -> None:
    assert memory.peaks(published("rloo", "5m", 1), limit=7.0) == {"ours": 12.5}
    assert asked == [("trl", 7.0), ("ours", 7.0)]
    assert "No peak memory of trl: TimeoutExpired" in capsys.readouterr().err


def test_cases_survive_the_way_to_another_process() -> None:
    case = replace(published("grpo", "25m", 2), forced=True, response_tokens=256)
    assert Case.from_json(case.to_json()) == case
    assert Case(**asdict(case)) == case
