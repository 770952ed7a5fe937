"""MT-bench's questions and a real model that answers and grades; how good its grades are is not the question. `make test-real`."""

import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from lit_align.annotators import LocalLM
from lit_align.cli import main
from tests.test_docs import ROOT, blocks, write_files

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
    pytest.mark.filterwarnings("default"),  # it says what is too long
]
CONTEXT, ANSWER = 512, 32  # tokens


def rows_of(path: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_the_command_of_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, asked = Path(os.environ["LIT_ALIGN_DATA"]).resolve(), list[str]()
    monkeypatch.setenv("LIT_ALIGN_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    page = ROOT / "docs" / "evaluation.md"
    write_files(tmp_path, page)
    lines = "\n".join(block.text for block in blocks(page) if block.language == "sh").splitlines()
    [command] = [line for line in lines if line.startswith("lit-align mtbench $LIT_ALIGN_DATA")]
    read = LocalLM.option_logps

    def heard(judge: LocalLM, prompts: Sequence[Any], options: Sequence[str]) -> torch.Tensor:
        asked.extend(prompt[-1]["content"] for prompt in prompts)
        return read(judge, prompts, options)

    monkeypatch.setattr(LocalLM, "option_logps", heard)
    main([os.path.expandvars(word) for word in shlex.split(command)[1:]])

    [stored] = Path("runs/mtbench/conversations").iterdir()
    said, grades = rows_of(stored), [row["grades"] for row in rows_of("runs/mtbench/grades.jsonl")]
    questions = [row for row in rows_of(data / "eval_prompts" / "dev.jsonl") if row["source"] == "mt_bench"]
    assert len(said) == len(grades) == len(questions) == 56
    tokenizer, graded, referenced = AutoTokenizer.from_pretrained(data / "stories260K"), 0, 0
    for question, row, given in zip(questions, said, grades, strict=True):
        turns = [question["prompt"], *question["followups"]]
        for turn in range(2):
            answer = row["answers"][turn]
            if answer is None:
                assert given[turn] is None
                assert sum(len(tokenizer(text)["input_ids"]) for text in turns[: turn + 1]) > CONTEXT - ANSWER - 100, "there was room"
                continue
            reference = (question["gpt4_reference"] or [None, None])[turn]
            known = [text for text in asked if f"<answer>\n{answer}\n</answer>" in text and turns[turn] in text]
            assert known, "nobody asked about this answer"
            assert turn == 0 or any(f"Assistant: {row['answers'][0]}\n" in text for text in known), "the first answer is not in the second"
            if reference is not None:
                referenced += 1
                assert any(reference in text for text in known)
            if given[turn] is not None:
                graded += 1
                assert 1 <= given[turn] <= 10
    assert referenced >= 20
    assert graded >= 50
    report = json.loads(Path("runs/mtbench/report.json").read_text(encoding="utf-8"))
    [model] = report["models"].values()
    numbers = torch.tensor([grade for row in grades for grade in row if grade is not None], dtype=torch.float64)
    assert model["all"]["n"] == graded
    assert model["all"]["value"] == pytest.approx(float(numbers.mean()))
    assert float(numbers.std()) < 0.5, "it has an opinion: then the page should say another thing of it"
