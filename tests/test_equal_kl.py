"""The table at equal divergence: where a run passes it, and what a line of the table says."""

from pathlib import Path

import pytest

from benchmarks.equal_kl import COMPARISONS, FILES, PAIRED, ROOT, Point, at_nats, curve_of, header, row


def test_a_run_is_read_where_it_first_passes() -> None:
    there_and_back = [Point(0, 0.5, 0.5), Point(16, 0.9, 0.8), Point(4, 0.7, 0.6), Point(16, 0.1, 0.1)]
    assert at_nats(there_and_back, 9) == pytest.approx((9, 0.8, 0.725))  # three quarters of the way in root KL


def test_a_run_that_stays_nearer_has_no_point() -> None:
    assert at_nats([Point(0, 0.5, 0.5), Point(8, 0.9, 0.9)], 10) is None


def test_a_judgement_exactly_there_is_taken_as_it_is() -> None:
    assert at_nats([Point(-1e-9, 0.5, 0.5), Point(10, 0.9, 0.9)], 10) == (10, 0.9, 0.9)


def test_only_judged_rollouts_of_a_log_count(tmp_path: Path) -> None:
    log = tmp_path / "metrics.csv"
    log.write_text("step,judge/kl_reference,judge/score,judge/win_rate,train/loss\n0,0.0,0.5,0.5,\n1,,,,2.0\n2,4.0,0.75,0.6,\n")
    assert curve_of(log) == [(0.0, 0.5, 0.5), (4.0, 0.75, 0.6)]


def test_a_line_of_the_table_is_over_seeds() -> None:
    def result(gold: float, nats: float, seconds: float) -> dict[str, object]:
        curve = [(0.0, 0.5, 0.5), (nats, gold, 0.75)]
        return {"algorithm": "dpo", "settings": {"beta": 0.1}, "curve": curve, "labels": 3840.0, "seconds": seconds}

    line = dict(
        zip(header(10, "dar"), row([result(0.75, 10, 3), result(0.85, 10, 5), result(0.9, 5, 4)], [result(0.5, 10, 2)], 10), strict=True)
    )
    assert line == {
        "algorithm": "`dpo`",
        "settings": "beta 0.1",
        "reached": "2 of 3",
        "gold at 10 nats": "0.800 (0.750 to 0.850)",
        "win rate at 10 nats": "0.75 (0.75 to 0.75)",
        "KL at the end, nats": "8.3 (5.0 to 10.0)",
        "gold at the end": "0.833 (0.750 to 0.900)",
        "labels": "3,840",
        "CPU time, `dar` = 1": "2.00",
    }
    assert row([result(0.75, 5, 3)], [result(0.5, 10, 2)], 10)[3] == "never there"
    assert row([result(0.75, 5, 3)], [result(0.5, 10, 2)], 5)[3] == "0.750 (0.750 to 0.750)"


@pytest.mark.parametrize("world", COMPARISONS)
def test_every_line_of_a_comparison_is_a_file(world: str) -> None:
    for name in COMPARISONS[world].settings:
        file = ROOT / f"configs/algorithm/{FILES.get(name, name)}.yaml"
        assert ("MixedDataModule" in file.read_text(encoding="utf-8")) <= (name in PAIRED)
