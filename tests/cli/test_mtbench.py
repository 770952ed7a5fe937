"""``lit-align mtbench`` from questions to grades, with a model of letters and a judge that counts them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_align.cli import main
from lit_align.generation import CacheSampler
from tests.annotators.worlds import SCORING
from tests.cli.shipped import CONFIGS

MTBench = Callable[..., dict]
BACKEND = """
import torch
from lit_align.types import JudgeBackend

class Counter(JudgeBackend):
    identity = "counter"

    def option_logps(self, prompts, options):
        lengths = [min(max(len(prompt[-1]["content"].rpartition("|")[2].split("\\n")[0]), 1), 10) for prompt in prompts]
        return torch.tensor([[0.0 if i + 1 == n else -40.0 for i in range(len(options))] for n in lengths])
"""
CONFIG = """
data:
  init_args:
    annotator:
      class_path: lit_align.annotators.ScoringJudge
      init_args:
        template: count.yaml
        backend:
          class_path: my_backend.Counter
"""
QUESTIONS = [
    {"id": "a", "source": "mt_bench", "category": "letters", "prompt": "a bad", "followups": ["a bed"], "gpt4_reference": ["cab", "dab"]},
    {"id": "b", "source": "other", "category": "letters", "prompt": "one turn", "followups": [], "gpt4_reference": None},
    {"question_id": 7, "category": "more", "turns": ["dig", "big"]},
]
MODEL = ["my-model", f"--chat_template={CONFIGS / 'chat_template' / 'plain.jinja'}", "--max_new_tokens=8"]


@pytest.fixture
def mtbench(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> MTBench:
    """Runs the command, says the numbers with what was printed."""
    monkeypatch.delitem(__import__("sys").modules, "my_backend", raising=False)
    Path("my_backend.py").write_text(BACKEND, encoding="utf-8")
    Path("count.yaml").write_text(SCORING, encoding="utf-8")
    Path("judge.yaml").write_text(CONFIG, encoding="utf-8")
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")

    def run(*arguments: str, output: str = "graded") -> dict:
        capsys.readouterr()
        main(["mtbench", *arguments, "--questions=questions.jsonl", "--config=judge.yaml", f"--output={output}"])
        return json.loads(Path(output, "report.json").read_text(encoding="utf-8")) | {"printed": capsys.readouterr().out}

    return run


def rows_of(file: str) -> list[dict]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


def test_a_model_answers_both_turns_and_is_graded_again_from_the_file(mtbench: MTBench, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    sample = CacheSampler.sample

    def watched(self, policy, prompts, responses, stream):  # pyright: ignore
        asked.append([[turn["content"] for turn in prompt.prompt.content] for prompt in prompts])
        return sample(self, policy, prompts, responses, stream)

    monkeypatch.setattr(CacheSampler, "sample", watched)
    found = mtbench(*MODEL)
    assert "1 rows of questions.jsonl are no questions of two turns, and left out." in found["printed"]
    rows = rows_of("graded/conversations/my-model.jsonl")
    answers = [row["answers"] for row in rows]
    assert asked == [[["a bad"], ["dig"]], [["a bad", answers[0][0], "a bed"], ["dig", answers[1][0], "big"]]]
    lengths = [[min(max(len(text), 1), 10) for text in said] for said in answers]
    assert [row["grades"] for row in rows_of("graded/grades.jsonl")] == [[pytest.approx(n, abs=1e-4) for n in row] for row in lengths]
    grades = found["models"]["my-model"]
    assert {*grades} == {"all", "turn 1", "turn 2", "letters", "more"}
    assert grades["turn 2"]["value"] == pytest.approx((lengths[0][1] + lengths[1][1]) / 2, abs=1e-4)
    assert grades["all"]["n"] == 4
    assert found["judge"].startswith("ScoringJudge(counter, count.yaml:")
    assert Path("graded/report.md").read_text(encoding="utf-8") in found["printed"]

    monkeypatch.setattr(CacheSampler, "sample", None)
    again = mtbench("graded/conversations/my-model.jsonl", output="again")
    assert again["models"]["graded/conversations/my-model.jsonl"] == grades


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--config=judge.yaml", "--questions=none.jsonl"], "Expected a file at none.jsonl, found none there"),
        (["x", "--config=judge.yaml", "--questions=one.jsonl"], "one.jsonl: expected questions of two turns, but none of 1 rows has"),
        (["x", "--config=judge.yaml", "--questions=broken.jsonl"], "broken.jsonl, line 1: expected one JSON object, but "),
        (["x", "--config=judge.yaml", "--questions=other.jsonl"], "other.jsonl, line 1: expected a question's texts in 'prompt'"),
        (
            ["x", "--config=plain.yaml", "--questions=questions.jsonl"],
            "Expected a ScoringJudge, which grades from 1 to 10, got FunctionAnnotator",
        ),
        (
            ["questions.jsonl", "--config=judge.yaml", "--questions=questions.jsonl"],
            "expected 'answers' to all 2 questions, but 2 have none",
        ),
        (["x", "x", "--config=judge.yaml", "--questions=questions.jsonl"], "Expected different sources, got x x."),
        (["no-model", "--config=judge.yaml", "--questions=questions.jsonl"], "policy: no model at 'no-model'"),
    ],
)
def test_mistakes(arguments: list[str], message: str, mtbench: MTBench, capsys: pytest.CaptureFixture[str]) -> None:
    Path("one.jsonl").write_text(json.dumps(QUESTIONS[1]) + "\n", encoding="utf-8")
    Path("broken.jsonl").write_text("{a\n", encoding="utf-8")
    Path("other.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    Path("plain.yaml").write_text((CONFIGS / "annotator" / "function.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(SystemExit) as exit_:
        main(["mtbench", *arguments])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
