"""A real pretrained policy on real text: `make test-real` (several minutes)."""

import csv
import os
import re
from pathlib import Path

import pytest

from benchmarks.stories import prepare
from lit_align.cli import main
from tests.cli import test_stranger as stranger

CONFIGS = Path(__file__).parents[2] / "configs"
ROLLOUTS, LONG = 30, 90

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
    pytest.mark.filterwarnings("default"),  # a run says what it drops
]


def fit(algorithm: str, experiment: str, rollouts: int) -> None:
    """One run in the current folder, with a CSV log in runs/NAME."""
    name = f"{experiment}-{algorithm}"
    files = [f"algorithm/{algorithm}.yaml", f"experiment/{experiment}.yaml"]
    main(
        [
            "fit",
            *(f"--config={CONFIGS / file}" for file in files),
            f"--run=runs/{name}",
            f"--trainer.max_epochs={rollouts}",
            "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
            "--trainer.logger.name=",
            "--trainer.logger.version=",
        ]
    )


def curve(run: str, metric: str) -> dict[int, float]:
    """Rollout to value."""
    with (Path("runs") / run / "metrics.csv").open(encoding="utf-8") as file:
        return {int(row["step"]): float(row[metric]) for row in csv.DictReader(file) if row.get(metric)}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory):
    """A folder with the prompts, as the current one."""
    folder, before = tmp_path_factory.mktemp("stories"), Path.cwd()
    os.chdir(folder)
    prepare(Path(os.environ["LIT_ALIGN_DATA"]), Path("runs/stories-world"))
    yield folder
    os.chdir(before)


def test_the_recommended_setting_raises_gold_and_holds_it(world: Path) -> None:
    fit("dar_anchored", "stories", LONG)
    run = "stories-dar_anchored"
    gold, wins, nats = (curve(run, f"judge/{name}") for name in ("score", "win_rate", "kl_reference"))
    print({name: {k: round(v, 3) for k, v in values.items()} for name, values in (("gold", gold), ("wins", wins), ("nats", nats))})
    assert abs(curve(run, "kl/reference")[0]) < 1e-4
    assert wins[0] == 0.5
    assert wins[ROLLOUTS] > 0.75
    assert gold[ROLLOUTS] > gold[0] + 0.1
    assert max(nats.values()) < 15
    assert gold[LONG] > 0.95 * max(gold.values())
    assert wins[LONG] > 0.75


def test_the_published_setting_runs_beside_it(world: Path) -> None:
    """What becomes of it is in docs/log.md; what must hold is that the proxy, which it maximises, rises."""
    fit("dar", "stories", ROLLOUTS)
    proxy = curve("stories-dar", "reward/mean")
    print({k: round(v, 3) for k, v in curve("stories-dar", "judge/score").items()}, {k: round(proxy[k], 3) for k in (0, ROLLOUTS - 1)})
    assert proxy[ROLLOUTS - 1] > proxy[0] + 0.1


def test_a_strangers_first_run_takes_two_edits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = str(Path(os.environ["LIT_ALIGN_DATA"]).resolve() / "stories260K")
    stranger.settle(tmp_path, model, monkeypatch)
    stranger.give_template()
    stranger.lit_align("check")
    stranger.lit_align("fit")
    stranger.check_run(model)


def test_multi_turn_prompts_longer_than_the_context_are_dropped_and_counted(world: Path) -> None:
    with pytest.warns(UserWarning, match="are longer than 448 tokens and dropped") as warned:
        fit("dar_anchored", "hh", 3)
    message = next(str(w.message) for w in warned if "dropped" in str(w.message))
    dropped, total = map(int, re.findall(r"(\d+) of (\d+) prompts", message)[0])
    assert total == 1620
    assert 0 < dropped < total
    print(message)
    assert abs(curve("hh-dar_anchored", "reward/mean")[0]) < 1
    assert curve("hh-dar_anchored", "train/skipped_steps") == dict.fromkeys(range(3), 0.0)
