"""The benchmark's plan, its file of results and its page."""

import json
import os
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.vs_trl import command, memory, report, rows, settings, targets
from benchmarks.vs_trl.agreement import Disagreement
from benchmarks.vs_trl.case import Case, published
from benchmarks.vs_trl.parts import LOOP
from benchmarks.vs_trl.picture import LEFT, LINE, MISSED, TOP, picture
from benchmarks.vs_trl.plan import AXES, Planned, along, everything, once, swept, swept_case
from benchmarks.vs_trl.results import Result, answers, append, asked, code_hash, latest

RLOO, ONLINE_DPO, DAR = published("rloo", "5m", 1), published("online_dpo", "5m", 1), published("dar", "5m", 1)


def result(case: Case = RLOO, median: float = 2.0, **options: Any) -> Result:
    """Of a case in which everything takes 4 and 2 seconds."""
    spread = {"median": median, "low": median - 0.1, "high": median + 0.2}
    side = {"cpu": 4.0, "wall": 4.0, "tokens": 1280, "tokens_per_second": 50.0, "floors": 2.0}
    first, second = case.sides
    return {
        "name": case.name,
        "case": asdict(case),
        "date": "2026-01-02T10:00",
        "asked": {"steps": 4, "memory": 1},
        "code": "now",
        "weights": "abc",
        "parameters": 5_000_000,
        "load": 0.5,
        "n": 6,
        "between": [median - 0.05, median + 0.05],
        "ratio": {"cpu": spread, "wall": spread},
        "sides": {first: side | {"wall": 5.0}, second: side | {"cpu": 2.0}},
        "parts": {second: {"sampling": 1.5, LOOP: 0.5}},
        "loop": {second: {"median": 0.02, "low": 0.01, "high": 0.03}},
        "memory": {first: 100.0, second: 50.0},
        "machine": {"flops": 9e10, "bytes": 3e10},
    } | options


def named(*results: Result) -> dict[str, Result]:
    return {one["name"]: one for one in results}


def cells(text: str) -> list[list[str]]:
    """Of a table, without its header."""
    return [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]


# The plan


def test_a_sweep_moves_one_axis() -> None:
    for axis in AXES:
        found = swept(axis, RLOO)
        places = [along(axis, one, {"1m": 1, "5m": 5, "12m": 12, "25m": 25}[one.model]) for one in found]
        assert places == sorted(set(places))
        assert all(one.forced for one in found)
    assert not any(one.forced for one in swept("batch", published("sft", "5m", 1))), "fixed data have their lengths"


def test_everything_is_every_line_and_every_sweep_once() -> None:
    found = everything()
    assert len({line.case.name for line in found}) == len(found)
    there = {line.case: line for line in found}
    assert targets.LINES.keys() <= there.keys()
    assert {point for axis in AXES for point in swept(axis, swept_case())} <= there.keys()
    assert {line.steps for line in found if line.case in targets.LINES} == {8}
    assert there[DAR] == Planned(DAR, steps=16, memory=False)
    centre = replace(RLOO, forced=True)
    assert there[centre] == Planned(centre, steps=4, memory=True), "a line that sweeps pass through"
    assert there[replace(centre, k=8)] == Planned(replace(centre, k=8), steps=2, memory=False)


def test_the_first_plan_of_a_case_is_taken_in_its_place() -> None:
    long, short, other = Planned(RLOO, 4, True), Planned(RLOO, 2, False), Planned(DAR, 16, False)
    assert once([long, other, short]) == [long, other]


def test_options_change_the_plan() -> None:
    def lines(*arguments: str) -> list[Planned]:
        return command.lines(command.parse(arguments))

    sft = published("sft", "5m", 1)
    assert lines("--algo", "rloo", "sft", "dar") == [Planned(RLOO, 8, True), Planned(sft, 4, True), Planned(DAR, 16, False)]
    assert lines("--algo", "rloo", "--steps", "3", "--no-memory") == [Planned(RLOO, 3, False)]
    assert lines("--quick", "--algo", "rloo", "--k", "8", "--forced") == [Planned(replace(RLOO, k=8, forced=True), 2, False)]
    assert lines("--all") == everything()
    assert {line.steps for line in lines("--all", "--quick")} == {2}
    crossed = [line.case for line in lines("--sweep", "k", "batch", "--algo", "rloo")]
    assert len(crossed) == 7
    assert set(crossed) == {*swept("k", RLOO), *swept("batch", RLOO)}


# Results that need not be measured again


def test_a_result_answers_what_it_was_measured_for() -> None:
    line = Planned(RLOO, steps=4, memory=True)
    there = result(asked=asked(line))
    assert answers(there, line, "now", "abc")
    assert answers(there | {"n": 1}, line, "now", "abc"), "it ran out of time, and would again"
    assert answers(there, replace(line, steps=2, memory=False), "now", "abc")
    assert not answers(there, replace(line, steps=5), "now", "abc")
    assert not answers(there | {"asked": {"steps": 4, "memory": 0}}, line, "now", "abc")
    assert not answers(there, line, "then", "abc")
    assert not answers(there, line, "now", "other weights")
    assert not answers(there | {"missing": "no time"}, line, "now", "abc")
    assert not answers(None, line, "now", "abc")
    older = {name: value for name, value in there.items() if name not in ("asked", "code")}
    assert not answers(older, line, "now", "abc")


def test_the_hash_is_of_names_and_contents_of_all_sources(tmp_path: Path) -> None:
    def hashed(files: dict[str, str]) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, text in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(text)
        return code_hash(folder)

    first = hashed({"a.py": "x", "b/c.py": "y"})
    assert hashed({"b/c.py": "y", "a.py": "x", "notes.txt": "no source"}) == first
    others = [hashed({"a.py": "x", "b/c.py": "z"}), hashed({"a.py": "x", "c.py": "y"}), hashed({"a.py": "x"})]
    assert len({first, *others}) == 4


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A benchmark whose measuring notes the name of the case, in a list, and takes no time."""
    noted: list[str] = []

    def measure(line: Planned, texts: object, limit: float) -> Result:
        noted.append(line.case.name)
        if line.case.algorithm == "grpo":
            raise Disagreement("No ratio: ...")
        return result(line.case, asked=asked(line), code=code_hash())

    modules = __import__("sys").modules
    monkeypatch.setitem(modules, "benchmarks.vs_trl.measure", type("Module", (), {"measure": staticmethod(measure)}))
    for name, value in {
        "RESULTS": tmp_path / "runs" / "results.jsonl",
        "TRIED": tmp_path / "runs" / "quick.jsonl",
        "PAGE": tmp_path / "page.md",
        "find_spec": lambda name: object(),
        "hush": lambda: None,
        "stories": lambda: [],
        "model_folder": lambda model, texts: Path(model),
        "weights_hash": lambda folder: "abc",
    }.items():
        monkeypatch.setattr(command, name, value)
    command.PAGE.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    return noted


def test_what_was_measured_is_not_measured_again(bench: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--algo", "rloo"]) == 0
    assert command.main(["--algo", "rloo", "sft"]) == 0
    said = capsys.readouterr()
    assert bench == [RLOO.name, published("sft", "5m", 1).name]
    assert f"{RLOO.name}: as measured before" in said.err
    assert said.out.count(f"\n| {RLOO.name} | 2.00 (1.90-2.20) | 2.00 (") == 2, "the second time from the file"
    assert command.main(["--algo", "rloo", "--again"]) == 0
    assert bench[2:] == [RLOO.name]
    assert command.main(["--algo", "rloo", "--steps", "9"]) == 0
    assert bench[3:] == [RLOO.name]


def test_a_quick_run_leaves_the_results_alone(bench: list[str]) -> None:
    for _ in range(2):
        assert command.main(["--quick", "--algo", "rloo"]) == 0
    assert len(bench) == 2, "it is to see that it runs"
    assert not command.RESULTS.exists()
    assert list(latest(command.TRIED)) == [RLOO.name]


def test_a_case_that_disagrees_is_missing_and_tried_again(bench: list[str]) -> None:
    for _ in range(2):
        assert command.main(["--algo", "grpo"]) == 1
    assert len(bench) == 2
    (line,) = latest(command.RESULTS).values()
    assert (line["missing"], line["case"]) == ("No ratio: ...", asdict(published("grpo", "5m", 1)))


def test_a_sweep_is_stored_and_comes_to_the_page(bench: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--sweep", "batch", "--algo", "rloo"]) == 0
    assert "| batch | rloo | 4, 8, 16, 32 | 0.00 | 0.00 |" in capsys.readouterr().out
    assert command.main(["--page"]) == 0
    assert "| batch | rloo | 4, 8, 16, 32 | 0.00 | 0.00 | 2.00, 2.00, 2.00, 2.00 |" in command.PAGE.read_text()


def test_without_results_there_is_no_page(bench: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--page"]) == 1
    assert "--all" in capsys.readouterr().err


def test_without_trl_it_says_what_to_do(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "find_spec", lambda name: None)
    assert command.main(["--quick"]) == 1
    assert "make bench" in capsys.readouterr().err


# Memory


def test_peaks_are_of_processes_that_give_back_what_they_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
        assert command[-1] == RLOO.to_json()
        assert options["env"] == {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        if command[command.index("--peak") + 1] == "ours":
            raise subprocess.TimeoutExpired(command, options["timeout"])
        return subprocess.CompletedProcess(command, 0, stdout="noise\n20.5\n")

    monkeypatch.setattr(memory.subprocess, "run", run)
    monkeypatch.setattr(memory, "RESET", Path(__file__))
    assert memory.peaks(RLOO, 60) == {"trl": 20.5}, "the other side took too long"
    monkeypatch.setattr(memory, "RESET", Path("nowhere"))
    assert memory.peaks(RLOO, 60) == {}


# The page


def test_a_row_of_the_table_has_both_sides() -> None:
    expected = [
        RLOO.name,
        *["2.00 (1.90-2.20)"] * 2,
        "6",
        "40 / 40",
        "4.00 / 2.00",
        "5.00 / 4.00",
        "50 / 50",
        "2.0 / 2.0",
        "100 / 50, 0.50",
        "0.5",
    ]
    assert rows.line(result()) == expected
    assert rows.line(result(memory={"trl": 100.0}))[9] == "100 / ?"
    assert len(expected) == len(rows.HEADER)


def test_what_is_missing_says_why() -> None:
    for case, header in ((RLOO, rows.HEADER), (DAR, rows.DAR)):
        missing = {"name": case.name, "case": asdict(case), "missing": "no time", "date": "2026-01-02"}
        made = report.text({case.name: missing}, RLOO)
        assert cells(made)[0][:2] == [case.name, "missing: no time"]
        assert made.count("\n") == 2, "nothing else is said"
        assert all(line.count("|") == len(header) + 1 for line in made.splitlines())


def test_the_worst_ratio_is_the_smallest_of_all_lines_beside_trl() -> None:
    long = replace(RLOO, forced=True, k=16)
    found = named(result(median=3.0), result(long, median=1.5), result(ONLINE_DPO, median=2.0), result(DAR, median=1.0))
    assert report.worst(found) == f"Worst ratio of all lines above (3): 1.50 (1.40-1.70), {long.name}."
    assert report.worst(named(result(DAR))) == ""


@pytest.mark.parametrize(
    ("ratio", "expected"), [(3.499, "missed"), (3.5, "must"), (4.499, "must"), (4.5, "bar"), (5.0, "goal"), (9.0, "goal")]
)
def test_the_hardest_target_of_a_line_that_is_reached_is_named(ratio: float, expected: str) -> None:
    assert rows.aims_line(result(median=ratio), RLOO.name, targets.LINES[RLOO])[2:4] == ["3.5 / 4.5 / 5", expected]


def test_limits_of_a_line_are_met_or_missed() -> None:
    def limits(**options: Any) -> list[str]:
        return rows.aims_line(result(**options), RLOO.name, targets.LINES[RLOO])[4:]

    assert limits() == ["2.00: missed", "0.50: met", "2.0% (1.0%-3.0%): met"]
    sides = {side: {"floors": floors} for side, floors in (("trl", 9.0), ("ours", 1.6))}
    loop = {"ours": {"median": 0.031, "low": 0.01, "high": 0.04}}
    assert limits(sides=sides, memory={"trl": 100.0, "ours": 51.0}, loop=loop) == ["1.60: met", "0.51: missed", "3.1% (1.0%-4.0%): missed"]
    older = {name: value for name, value in result(memory={}).items() if name not in ("loop", "parts")}
    assert rows.aims_line(older, RLOO.name, targets.LINES[RLOO])[5:] == ["?", "?"]


def test_every_line_with_a_target_is_there_also_where_it_was_not_measured() -> None:
    found = cells(report.aims(named(result())))
    assert [row[0] for row in found] == [case.name for case in targets.LINES]
    assert {row[0] for row in found if row[1] == "not measured"} == {case.name for case in targets.LINES} - {RLOO.name}
    assert report.aims(named(result(replace(RLOO, forced=True)))) == "", "targets are of natural lengths"


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(1.03, ("1.030: met", "0.980-1.080")), (1.0301, ("1.030: missed", "0.980-1.080")), (0.99, ("0.990: met", "0.940-1.040"))],
)
def test_dar_has_a_table_of_its_own(ratio: float, expected: tuple[str, str]) -> None:
    found = named(result(), result(DAR, median=ratio))
    (row,) = cells(report.dar(found))
    assert (row[0], *row[5:9]) == (DAR.name, "4.00 / 2.00", "5.00 / 4.00", *expected)
    assert len(row) == len(rows.DAR)
    assert cells(report.dar(named(result(DAR, between=None))))[0][8] == "?"
    assert [row[0] for row in cells(report.lines(found))] == [RLOO.name]


def test_profiles_are_of_lines_with_targets_and_of_both_sides_of_dar() -> None:
    both = {"dar": {"sampling": 3.0, LOOP: 1.0}, "rloo": {"sampling": 1.0, LOOP: 1.0}}
    found = cells(report.profiles(named(result(), result(DAR, parts=both), result(published("sft", "5m", 1)))))
    assert [row[0] for row in found] == [RLOO.name, f"{DAR.name}: dar", f"{DAR.name}: rloo"]
    assert (found[0][1], found[0][2], found[0][-1]) == ("2.000", "1.500 (75.0%)", "0.500 (25.0%)")
    assert found[1][-1] == "1.000 (25.0%)"


def test_exponents_are_of_what_was_swept() -> None:
    def swept_result(case: Case, parameters: int = 5_000_000) -> Result:
        made = result(case, parameters=parameters)
        for side, exponent in (("trl", 1.0), ("ours", 0.5)):
            made["sides"][side] = made["sides"][side] | {"cpu": 3 * case.k**exponent * parameters**2}
        return made

    found = [swept_result(case) for case in swept("k", RLOO)[:3]]
    assert cells(report.sweeps(named(*found), RLOO)) == [["k", "rloo", "2, 4, 8", "1.00", "0.50", "2.00, 2.00, 2.00"]]
    sizes = [swept_result(case, number) for case, number in zip(swept("size", RLOO), (1, 5, 12, 25), strict=True)]
    assert cells(report.sweeps(named(*sizes), RLOO))[0][:5] == ["size", "rloo", "1m, 5m, 12m, 25m", "2.00", "2.00"]
    assert report.sweeps(named(found[0]), RLOO) == "", "one point has no slope"
    assert report.sweeps(named(*found), ONLINE_DPO) == ""
    lost = found[2] | {"missing": "no time"}
    assert cells(report.sweeps(named(found[0], found[1], lost), RLOO))[0][2] == "2, 4"


def test_machines_are_told_by_model_and_threads() -> None:
    slower = result(ONLINE_DPO, machine={"flops": 8e10, "bytes": 2e10}, code="then")
    found = cells(report.machines(named(result(), result(published("rloo", "25m", 2)), slower)))
    assert found == [["25m", "2", "90-90", "30-30", "`abc`", "`now`"], ["5m", "1", "80-90", "20-30", "`abc`", "`now`, `then`"]]


def test_the_page_takes_the_last_result_of_each_line_in_the_plans_order(bench: list[str]) -> None:
    other = result(replace(RLOO, prompts=3))
    for one in (result(median=2.0), result(ONLINE_DPO, median=3.0, date="2026-01-05"), other, result(median=5.0)):
        append(command.RESULTS, one)
    assert command.main(["--page"]) == 0
    text = command.PAGE.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\nMeasured 2026-01-02 to 2026-01-05.\n\n| ")
    assert text.endswith(f".\n\nlit_align: {settings.OURS}.\n{report.END}\nafter\n")
    assert f"\n\nTRL: {settings.TRL}.\n" in text
    assert text.index(f"| {ONLINE_DPO.name} | 3.00") < text.index(f"| {RLOO.name} | 5.00")
    assert "old" not in text
    assert other["name"] not in text, "no line of the plan"
    assert f"| {RLOO.name} | 2.00 (" not in text
    assert command.main(["--page"]) == 0
    assert command.PAGE.read_text() == text
    with Image.open(command.PAGE.with_suffix(".png")) as drawn:
        assert drawn.size == picture(named(result(), result(ONLINE_DPO), result(DAR))).size, "two bars"


def test_a_bar_that_misses_its_target_is_red() -> None:
    def colour(case: Case, median: float) -> object:
        return picture(named(result(case, median=median))).getpixel((LEFT + 20, TOP + LINE // 2))

    assert colour(RLOO, 3.49) == MISSED
    assert colour(RLOO, 3.5) != MISSED
    assert colour(replace(RLOO, forced=True), 1.0) != MISSED, "there is no target"


def test_results_are_kept_as_lines(tmp_path: Path) -> None:
    file = tmp_path / "runs" / "results.jsonl"
    assert latest(file) == {}
    for one in (result(), result(median=3.0)):
        append(file, one)
    assert [json.loads(line)["ratio"]["cpu"]["median"] for line in file.read_text().splitlines()] == [2.0, 3.0]
    assert latest(file)[RLOO.name]["ratio"]["cpu"]["median"] == 3.0
