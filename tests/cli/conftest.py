"""What a user has, and the shipped files."""

import json
import sys
from pathlib import Path

import pytest

from tests.tiny import PROMPTS, write_prompts, write_tiny

ANNOTATOR = "def score(prompt, responses):\n    return [sum(letter in 'aei' for letter in text) for text in responses]\n"


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, prompts, an annotator, in the current folder."""
    write_tiny(tmp_path / "my-model")
    write_prompts(tmp_path / "prompts.jsonl")
    write_prompts(tmp_path / "eval_prompts.jsonl", PROMPTS[:4])
    for name in ("pairs.jsonl", "eval_pairs.jsonl"):
        rows = [{"prompt": prompt, "chosen": "ha", "rejected": "jig"} for prompt in PROMPTS]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "my_annotator.py").write_text(ANNOTATOR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(tmp_path), *sys.path])
    monkeypatch.delitem(sys.modules, "my_annotator", raising=False)
    return tmp_path
