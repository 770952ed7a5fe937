"""Human labels and judges' that were published: known values, and values counted here in another way."""

import json
import os
import shlex
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torchmetrics.functional.classification import multiclass_cohen_kappa

from lit_align.cli import main
from tests.test_docs import ROOT, blocks

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LIT_ALIGN_DATA", str(Path(os.environ["LIT_ALIGN_DATA"]).resolve()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rows_of(name: str) -> list[dict[str, Any]]:
    text = (Path(os.environ["LIT_ALIGN_DATA"]) / name / "dev.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def found_by(name: str, *arguments: str) -> dict[str, tuple[float, int]]:
    """Value and number of pairs of every measure."""
    main(["agree", f"$LIT_ALIGN_DATA/{name}/dev.jsonl", *arguments, "--json=found.json"])
    measures = json.loads(Path("found.json").read_text(encoding="utf-8"))["report"]["measures"]
    return {key: (one["value"], one["n"]) for key, one in measures.items()}


def test_gpt_4_and_people_on_mt_bench(folder: Path) -> None:
    found = found_by("mtbench_judgments", "--human=human_votes.winner", "--ai=gpt4")
    assert {key: (round(value, 4), n) for key, (value, n) in found.items() if "agreement" in key or "kappa" in key} == {
        "agreement": (0.6747, 1248),
        "kappa": (0.5054, 1248),
        "agreement_without_ties": (0.8896, 770),
        "kappa_without_ties": (0.7784, 770),
        "human_agreement": (0.6524, 663),
    }


def test_a_judge_in_both_orders_on_llmbar(folder: Path) -> None:
    found = found_by("llmbar", "--human=human_label", "--ai=ai_labels.ChatGPT/Vanilla_NoRules", "--none", "None")
    rows = [(str(row["human_label"]), row["ai_labels"]["ChatGPT/Vanilla_NoRules"]) for row in rows_of("llmbar")]
    for order, name in enumerate(("accuracy_given", "accuracy_swapped")):
        said = [(human, both[order]) for human, both in rows if both[order] != "None"]
        assert found[name] == (pytest.approx(sum(human == ai for human, ai in said) / len(said)), len(said))
    both = [ai for _, ai in rows if "None" not in ai]
    assert found["consistency"] == (pytest.approx(sum(one == other for one, other in both) / len(both)), len(both))


@pytest.mark.parametrize("judge", ["gpt-3.5-turbo", "pandalm-7b"])
def test_a_judge_and_three_people_on_pandalm(judge: str, folder: Path) -> None:
    found = found_by("pandalm", "--human=human", f"--ai=ai.{judge}", "--tie", "0", "Tie", "--none", "garbage")
    pairs = []
    for row in rows_of("pandalm"):
        said = {"Tie": "0"}.get(row["ai"][judge], row["ai"][judge])
        (first, most), *others = Counter(row["human"]).most_common()
        people = 0 if others and others[0][1] == most else first
        if said != "garbage":
            pairs.append((people, int(said)))
    people, ai = torch.tensor(pairs).T
    assert found["agreement"] == (pytest.approx(float((people == ai).double().mean())), len(pairs))
    assert found["kappa"][0] == pytest.approx(float(multiclass_cohen_kappa(ai, people, num_classes=3)), abs=1e-6)


def test_the_commands_about_published_labels_print_what_the_page_shows(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = (
        "\n".join(block.text for block in blocks(ROOT / "docs" / "trust.md") if block.language == "sh").replace("\\\n", " ").splitlines()
    )
    found = [shlex.split(line)[1:] for line in lines if "$LIT_ALIGN_DATA" in line]
    assert len(found) >= 4
    for command in found:
        main(command)
    said = capsys.readouterr().out.splitlines()
    shown = [
        line for block in blocks(ROOT / "docs" / "trust.md") if not block.language for line in block.text.splitlines() if line != "..."
    ]
    assert len(shown) > 20
    assert [line for line in shown if line not in said] == []
