"""The benchmark of the bfloat16 copy, with a toy."""

import pytest

from benchmarks.bf16 import main


def test_the_script_runs(capsys: pytest.CaptureFixture[str]) -> None:
    tables = main(["--toy"])
    alone, whole, apart = (rows[1:] for rows in tables.values())
    assert [row[1] for row in alone] == [f"{dtype}, {way}" for dtype in ("bfloat16", "float32") for way in ("FusedRows", "PaddedRows")]
    ((step, *_, n),) = whole
    ((same_step, mean, largest, cut),) = apart
    assert step == same_step
    assert step.startswith("rloo")
    assert n == "2"
    assert 0 < float(mean) < 0.05
    assert float(mean) <= float(largest) + 0.005
    assert cut == "0.0%"
    assert "| bfloat16, FusedRows |" in capsys.readouterr().out
