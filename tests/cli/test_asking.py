"""What the commands that judge have paid for: printed, kept beside their output, and not asked again after an interruption."""

import json
import sqlite3
import sys
from pathlib import Path

import pytest

from lit_align.cli import main
from tests.annotators.worlds import SCORING
from tests.cli.test_agree import ROWS

BACKEND = '''
import json
import torch
from lit_align.metering import current_meter
from lit_align.types import JudgeBackend

class Paid(JudgeBackend):
    """Likes long texts, for money; cut off after so many calls."""

    identity = "paid"
    calls, limit = 0, 1000

    def option_logps(self, prompts, options):
        return torch.tensor([self.ask(prompt[-1]["content"], len(options)) for prompt in prompts]).log_softmax(-1)

    def ask(self, text, options):
        meter, question = current_meter(), json.dumps(text)
        known = meter.recall(question)
        if known is None:
            attempt = meter.sent(question, "long")
            Paid.calls += 1
            if Paid.calls > Paid.limit:
                raise KeyboardInterrupt
            known = json.dumps([float(i == len(text) % options) for i in range(options)])
            meter.answered(attempt, known, 100, 1, 0.5)
        return json.loads(known)
'''
CONFIG = """
data:
  init_args:
    prices:
      long:
        prompt: 5000.0
        completion: 500000.0
    annotator:
      class_path: lit_align.annotators.ScoringJudge
      init_args:
        template: count.yaml
        min_mass: 0.0
        backend:
          class_path: my_paid_backend.Paid
"""  # a call: 100 and 1 tokens, 1 of money


@pytest.fixture(autouse=True)
def paid(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A judge that charges, and two files of samples."""
    monkeypatch.delitem(sys.modules, "my_paid_backend", raising=False)
    files = {"my_paid_backend.py": BACKEND, "count.yaml": SCORING, "paid.yaml": CONFIG, "free.yaml": CONFIG.replace("prices", "pricing")}
    for name, text in files.items():
        Path(name).write_text(text, encoding="utf-8")
    for name, letter in (("a.jsonl", "aa"), ("b.jsonl", "b")):
        rows = [{"prompt": str(i), "responses": [letter * (i + 1)]} for i in range(3)]
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def outcomes(folder: str) -> list[tuple[str | None]]:
    table = sqlite3.connect(Path(folder, "ledger", "calls-0.sqlite"))
    found = table.execute("SELECT outcome FROM attempts ORDER BY attempt").fetchall()
    table.close()
    return found


def test_judge_says_what_it_cost_and_goes_on_where_it_was_cut_off(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["judge", "a.jsonl", "b.jsonl", "--config=paid.yaml", "--output=judged"]
    main([*arguments[:-1], "--output=whole"])
    assert "Cost of all calls in whole/ledger: 6 calls; 600 tokens read, 6 written; price: 6.00." in capsys.readouterr().out
    assert outcomes("whole") == [("answered",)] * 6
    [line] = Path("whole/ledger/cost.jsonl").read_text(encoding="utf-8").splitlines()
    assert (json.loads(line)["calls"], json.loads(line)["price"]) == (6, 6.0)

    backend = sys.modules["my_paid_backend"].Paid
    backend.limit = backend.calls + 4
    with pytest.raises(KeyboardInterrupt):
        main(arguments)
    cut = "judged/ledger: 5 calls; 400 tokens read, 4 written; price: 4.00, and perhaps that of 1 without an answer."
    assert cut in capsys.readouterr().out
    backend.limit = 1000
    main(arguments)
    assert "judged/ledger: 7 calls, 4 answers known already; 600 tokens read, 6 written; price: 6.00, and" in capsys.readouterr().out
    assert outcomes("judged") == [("answered",)] * 4 + [(None,)] + [("answered",)] * 2
    assert Path("judged/verdicts.jsonl").read_bytes() == Path("whole/verdicts.jsonl").read_bytes()
    with pytest.raises(SystemExit):
        main(arguments)
    assert "judged exists already." in capsys.readouterr().err, "it is finished"


def test_what_is_not_known_is_not_zero_and_what_is_free_is_not_mentioned(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.warns(UserWarning, match="What 'long' costs is not known"):
        main(["judge", "a.jsonl", "b.jsonl", "--config=free.yaml", "--output=judged"])
    assert "6 calls; 600 tokens read, 6 written; price: unknown." in capsys.readouterr().out
    Path("function.py").write_text("def score(prompt, responses):\n    return [len(text) for text in responses]\n", encoding="utf-8")
    named = "{data: {init_args: {annotator: {class_path: FunctionAnnotator, init_args: {function: function.score}}}}}"
    main(["judge", "a.jsonl", "b.jsonl", f"--config={named}", "--output=free"])
    assert "Cost" not in capsys.readouterr().out
    assert not Path("free/ledger").exists()


def test_mtbench_pays_both_judges_from_one_table(capsys: pytest.CaptureFixture[str]) -> None:
    questions = [{"prompt": "x", "followups": ["y"], "answers": ["aa", "b"]}]
    Path("told.jsonl").write_text(json.dumps(questions[0]) + "\n", encoding="utf-8")
    Path("first.yaml").write_text(CONFIG.replace("long:", "other:"), encoding="utf-8")
    Path("second.yaml").write_text(CONFIG.replace("count.yaml", "second_count.yaml"), encoding="utf-8")
    Path("second_count.yaml").write_text(SCORING.replace("{response}", "{response}."), encoding="utf-8")
    main(["mtbench", "told.jsonl", "--questions=told.jsonl", "--config=first.yaml", "--second_config=second.yaml", "--output=graded"])
    assert "Cost of all calls in graded/ledger: 2 calls; 200 tokens read, 2 written; price: 2.00." in capsys.readouterr().out
    assert outcomes("graded") == [("answered",)] * 2


def test_agree_pays_for_a_pair_once(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    arguments = ["agree", "pairs.jsonl", "--human=votes.winner", "--config=paid.yaml", "--responses", "answer_a", "answer_b"]
    main(arguments)
    said = capsys.readouterr().out
    assert "Cost of all calls in runs/agreed/ledger: 8 calls; 800 tokens read, 8 written; price: 8.00." in said
    with pytest.raises(SystemExit):
        main(arguments)
    assert "runs/agreed exists already. Choose another folder with --output" in capsys.readouterr().err, "another judge may have the name"
    main([*arguments, "--output=elsewhere", "--json=found.json"])
    assert outcomes("elsewhere") == [("answered",)] * 8
    assert Path("elsewhere/agreement.json").read_bytes() == Path("found.json").read_bytes()
    Path("elsewhere/agreement.json").unlink()  # as if it had been cut off before
    main([*arguments, "--output=elsewhere", "--against=paid.yaml"])
    said = capsys.readouterr().out
    assert "8 calls, 8 answers known already; 800 tokens read, 8 written; price: 8.00." in said
    assert "8 calls, 16 answers" not in said, "each counts what it was given itself"
    assert outcomes("elsewhere") == [("answered",)] * 8
