"""What a run costs, from the command line: the examples of docs/costs.md, before a run and in it."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest
import torch

from lit_align.cli import main
from tests.cli.shipped import CONFIGS, OWN, ROOT, SMALL
from tests.test_docs import blocks

PAGE = ROOT / "docs" / "costs.md"
FILES = [f"--config={file}" for file in ("prices.yaml", "budget.yaml", "cached.yaml")]
PAID = "--data.init_args.annotator.init_args.function=my_paid.score"


@pytest.fixture
def paid(world: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the page."""
    for block in blocks(PAGE):
        if block.language in ("python", "yaml"):
            (world / (block.file or "my_paid.py")).write_text(block.text, encoding="utf-8")
    monkeypatch.delitem(sys.modules, "my_paid", raising=False)
    return world


def test_the_examples_of_the_page(paid: Path) -> None:
    own = [f"--config={CONFIGS / part}" for part in ("algorithm/dar_anchored.yaml", "experiment/local.yaml")]
    for run in ("one", "two"):
        main(["fit", *own, *FILES, *SMALL, "--trainer.max_epochs=2", f"--run=runs/{run}"])
    lines = [[json.loads(line) for line in (paid / f"runs/{run}/ledger/cost.jsonl").read_text().splitlines()] for run in ("one", "two")]
    for first, second in zip(*lines, strict=True):
        assert first["calls"] + first["hits"] == 32
        assert first["price"] == pytest.approx((2.5 * first["prompt_tokens"] + 10 * first["completion_tokens"]) / 1e6)
        assert first["reused_labels"] == 0
        assert (second["calls"], second["price"], second["reused_labels"]) == (0, 0, 32), "the second run is free"
        assert first["labels_used"] == second["labels_used"]
    weights = [torch.load(paid / f"runs/{run}/checkpoints/last.ckpt", weights_only=False)["state_dict"] for run in ("one", "two")]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    table = sqlite3.connect(paid / "runs/one/ledger/calls-0.sqlite")
    assert table.execute("SELECT COUNT(*) FROM attempts WHERE outcome = 'answered'").fetchone()[0] == sum(
        line["calls"] for line in lines[0]
    )
    table.close()


def test_the_page_has_every_metric(paid: Path) -> None:
    from lit_align.data.spend import Spend

    page = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in page for name in Spend().metrics())


def test_a_run_ends_with_its_budget_and_is_resumed(world: Path) -> None:
    main(["fit", *OWN, "--trainer.max_epochs=3", "--data.init_args.budget.labels=70", "--run=runs/a"])
    last = world / "runs" / "a" / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=False)["epoch"] == 2, "rollouts"
    main(["fit", *OWN, "--trainer.max_epochs=3", "--data.init_args.budget={labels: 96}", "--run=runs/a", "--ckpt_path=last"])
    assert torch.load(last, weights_only=False)["epoch"] == 3


def test_a_budget_of_nothing_is_a_mistake(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *OWN, "--data.init_args.budget.labels=0"])
    assert exit_.value.code == 2
    assert "budget should limit labels, tokens or money to a positive number" in capsys.readouterr().err


def test_the_price_before_the_run(paid: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every call of the rehearsal reads 54 tokens, writes one, and is of a response of its own."""
    source = (paid / "my_paid.py").read_text(encoding="utf-8").replace('"my-model", prompt, response]', '"my-model", len(asked)]')
    source = source.replace("50 + len(text), 1", "54, 1").replace(
        "def ask(prompt, response):", "asked = []\n\ndef ask(prompt, response):\n    asked.append(1)"
    )
    (paid / "my_paid.py").write_text(source, encoding="utf-8")
    arguments = ["check", *OWN, PAID, "--trainer.max_epochs=100", "--data.init_args.prompts_per_rollout=32"]
    with pytest.warns(UserWarning, match="What 'my-model' costs is not known"):
        main(arguments)
    assert (
        "Cost of the run: about 12,800 calls, 691,200 tokens read, 12,800 written; price: unknown, for want of" in capsys.readouterr().out
    )
    main([*arguments, "--config=prices.yaml", "--data.init_args.budget={labels: 12000, money: 1.0, tokens: 10000000}"])
    said = capsys.readouterr().out
    assert "12,800 written; price: 1.86.\nThe budget of money ends it after about 53 rollouts.\n" in said
    main([*arguments, "--config=prices.yaml", "--trainer.max_epochs=-1"])
    assert "Cost of a rollout: about 128 calls, 6,912 tokens read, 128 written; price: 0.02.\n" in capsys.readouterr().out


def test_a_budget_for_the_whole_run_is_not_mentioned(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", *OWN, "--trainer.max_epochs=3", "--data.init_args.budget={labels: 96, tokens: 1}"])
    said = capsys.readouterr().out
    assert "Labels: at most 96 " in said
    assert "budget" not in said
    assert "Cost" not in said, "nobody charged"
