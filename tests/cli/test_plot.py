"""``lit-align plot`` from the logs of runs to a picture and its points."""

import json
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image

from lit_align.cli import main

ROLLOUTS = [{"reward/mean": 1.0 + n, "kl/reference": float(n * n)} for n in range(4)]


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two runs that logged the same in two ways, and one judged score."""
    monkeypatch.chdir(tmp_path)
    for logger in (TensorBoardLogger("runs", name="board", version=""), CSVLogger("runs/table", name="csv")):
        for rollout, metrics in enumerate(ROLLOUTS):
            logger.log_metrics(metrics, rollout)
            logger.log_metrics({"train/loss": 0.0}, rollout)
        logger.log_metrics({"judge/score": 2.0, "judge/kl_reference": 0.25}, 4)
        logger.save()
        logger.finalize("success")


@pytest.mark.usefixtures("runs")
def test_both_kinds_of_logs_give_the_same_points(capsys: pytest.CaptureFixture[str]) -> None:
    main(["plot", "runs/board", "runs/table", "--output=plots/both.png"])
    said = json.loads(Path("plots/both.json").read_text(encoding="utf-8"))
    board, table = said["runs"]["runs/board"], said["runs"]["runs/table"]
    assert board["rollouts"] == [0, 1, 2, 3]
    assert board["roots"] == pytest.approx([0, 1, 2, 3])
    assert board["scores"] == pytest.approx([1, 2, 3, 4])
    assert board == table
    assert "runs/board: reward/mean is about 1 + 1 x root of KL, over 4 points." in capsys.readouterr().out
    with Image.open("plots/both.png") as picture:
        assert picture.size == (720, 480)


@pytest.mark.usefixtures("runs")
def test_a_judges_score_goes_with_its_own_divergence() -> None:
    main(["plot", "runs/table", "--score=judge/score"])
    said = json.loads(Path("reward_kl.json").read_text(encoding="utf-8"))
    assert said["kl"] == "judge/kl_reference"
    assert (said["runs"]["runs/table"]["roots"], said["runs"]["runs/table"]["scores"]) == ([0.5], [2.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "runs/none has no logs: expected TensorBoard's event files or a metrics.csv in it."),
        (
            ["runs/table", "--score=reward/men"],
            "runs/table logged no reward/men. Choose others with --score and --kl; its logs have: judge/kl_ref",
        ),
        (["runs/table", "--score=judge/score", "--kl=kl/reference"], "runs/table logged judge/score and kl/reference at no common x."),
    ],
)
@pytest.mark.usefixtures("runs")
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["plot", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
