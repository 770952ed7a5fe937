"""The script for a GPU, with a toy on the CPU."""

import pytest

from benchmarks.gpu import main


@pytest.mark.parametrize("what", ["rollout", "train"])
def test_the_script_runs_without_a_gpu(what: str) -> None:
    result = main([what, "--toy"])
    assert result["n"] == 2
    assert result["size"] == "toy"
    if what == "rollout":
        assert result["tokens_per_second"].keys() == {"ours", "generate"}
        assert result["low"] <= result["ratio"] <= result["high"]
        assert result["of_the_roof"]["ours"] == pytest.approx(result["tokens_per_second"]["ours"] / result["roof"])
    else:
        assert result["tokens_per_second"] == pytest.approx(16 * (8 + 8) / result["seconds"]), "prompts are read once per response"
        assert 0 < result["trained"] < result["frozen"]


def test_a_real_size_needs_a_gpu(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit):
        main(["rollout", "--size", "7b"])
    assert "--toy" in capsys.readouterr().err
