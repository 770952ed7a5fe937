"""What people wrote is taken as it stands, and what they have not written yet is asked for."""

import json
import threading
from dataclasses import replace

import pytest
import torch

from lit_align.annotators import LabelFile, label_file
from lit_align.types import UserError
from tests.annotators.worlds import rollouts

SAID = rollouts([["yes", "no"], ["yes", "maybe"]], ["a", "b"])


def row(prompt, response, score):
    return json.dumps({"prompt": prompt, "response": response, "score": score}) + "\n"


def test_scores_are_those_of_prompt_and_response(tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(row("a", "yes", 1) + "\n" + row("b", "yes", 9) + row("a", "no", None) + row("b", "yes", -2.5) + '{"prompt": "b", "re')
    found = LabelFile(str(path)).annotate(SAID)
    assert found.scores.tolist() == [[1.0, 0.0], [-2.5, 0.0]]
    assert found.valid.tolist() == [[True, False], [True, False]]
    path.write_text(path.read_text().rpartition("\n")[0] + "\n" + row("b", "maybe", 3))
    assert LabelFile(str(path)).annotate(SAID).scores.tolist() == [[1.0, 0.0], [-2.5, 3.0]]


def test_messages_are_prompts_too(tmp_path):
    messages = ({"role": "user", "content": "a"},)
    path = tmp_path / "labels.jsonl"
    path.write_text(row([{"content": "a", "role": "user"}], "yes", 1))
    said = replace(SAID, prompts=(replace(SAID.prompts[0], content=messages), SAID.prompts[1]))
    assert LabelFile(str(path)).annotate(said).valid.tolist() == [[True, False], [False, False]]


def test_what_has_no_label_is_written_down_once(tmp_path):
    path, waiting = tmp_path / "labels.jsonl", tmp_path / "waiting.jsonl"
    path.write_text(row("a", "no", 0.5))
    asked = rollouts([["yes", "no", "yes"]], ["a"])
    assert LabelFile(str(path), str(waiting)).annotate(asked).valid.tolist() == [[False, True, False]]
    assert waiting.read_text() == row("a", "yes", None)
    path.write_text(waiting.read_text().replace("null", "2.0"))  # a person copies the line and gives it a score
    assert LabelFile(str(path)).annotate(asked).scores.tolist() == [[2.0, 0.0, 2.0]]


def test_it_waits_for_people(tmp_path, monkeypatch):
    monkeypatch.setattr(label_file, "POLL_SECONDS", 0.01)
    path, waiting = tmp_path / "labels.jsonl", tmp_path / "waiting.jsonl"
    person = threading.Timer(0.1, lambda: path.write_text("".join(row(p, r, 1) for p in "ab" for r in ("yes", "no", "maybe"))))
    person.start()
    found = LabelFile(str(path), str(waiting), patience_minutes=1.0).annotate(SAID)
    person.join()
    assert torch.equal(found.scores, torch.ones(2, 2))
    assert len(waiting.read_text().splitlines()) == 4
    path.unlink()
    assert not LabelFile(str(path), str(waiting), patience_minutes=1e-4).annotate(SAID).valid.any(), "but not for ever"


@pytest.mark.parametrize("line", ["no json", "[1]", '{"prompt": "a", "score": 1}', '{"prompt": "a", "response": "b", "score": "good"}'])
def test_a_line_that_is_no_label_is_named(line, tmp_path):
    path = tmp_path / "labels.jsonl"
    path.write_text(row("a", "yes", 1) + line + "\n")
    with pytest.raises(UserError, match=r"labels.jsonl, line 2: expected \{\"prompt\""):
        LabelFile(str(path)).annotate(SAID)


@pytest.mark.parametrize(("patience", "waiting"), [(-1.0, "x"), (1.0, None)])
def test_patience_needs_something_to_show(patience, waiting):
    with pytest.raises(UserError, match="patience_minutes should be 0, or positive with a `waiting` file"):
        LabelFile("labels.jsonl", waiting, patience)
