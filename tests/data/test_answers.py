"""Which answers a row has, and what they are worth."""

import json
from pathlib import Path
from typing import Any

import pytest

from lit_align.data import Answers, Completions, Demonstration, JsonlPrompts, Labelled, Pair, ParquetPrompts, Ranked
from lit_align.types import Answer, Prompt, UserError
from tests.data.test_columns import BLACK, DIALOGUE, GREEN, MORE, SYSTEM, USER

TEA = {"prompt": "Which tea?"}
BETTER = (Answer("Green.", 1.0), Answer("Black.", 0.0))
TURNS = ({"role": "assistant", "content": "Green."}, MORE, BLACK)
CALL = {"role": "assistant", "content": "", "tool": "kettle"}

ROWS: dict[str, tuple[dict[str, Any], tuple[Answer, ...]]] = {
    "pair": (TEA | {"chosen": "Green.", "rejected": "Black."}, BETTER),
    "pair of turns": ({"prompt": [USER], "chosen": [GREEN], "rejected": BLACK}, BETTER),
    "pair of conversations": ({"chosen": [SYSTEM, USER, GREEN], "rejected": [SYSTEM, USER, BLACK]}, BETTER),
    "pair beside its messages": ({"messages": [USER, GREEN], "chosen": [USER, GREEN], "rejected": [USER, BLACK]}, BETTER),
    "pair of dialogues": ({"chosen": DIALOGUE + " Green.", "rejected": DIALOGUE + " Black."}, BETTER),
    "no prompt": ({"prompt": "", "chosen": "Green.", "rejected": "Black."}, BETTER),
    "several turns": ({"prompt": [USER], "chosen": [GREEN, MORE, BLACK], "rejected": "No."}, (Answer(TURNS, 1.0), Answer("No.", 0.0))),
    "a turn that says more": ({"prompt": [USER], "completion": [CALL]}, (Answer((CALL,)),)),
    "ranked": (
        TEA | {"responses": ["a", "b", "c"], "scores": [2, None, -0.5]},
        (Answer("a", 2.0), Answer("b", None), Answer("c", -0.5)),
    ),
    "ultrafeedback": (
        {"instruction": "Which tea?", "completions": [{"response": "a", "overall_score": 7.5}, {"response": "b", "overall_score": 2}]},
        (Answer("a", 7.5), Answer("b", 2.0)),
    ),
    "good": (TEA | {"completion": "Green.", "label": True}, (Answer("Green.", 1.0),)),
    "bad": (TEA | {"completion": "Green.", "label": 0}, (Answer("Green.", 0.0),)),
    "not labelled": (TEA | {"completion": "Green.", "label": None}, ()),
    "labelled otherwise": (TEA | {"completion": "Green.", "label": "sports"}, ()),
    "demonstration": (TEA | {"completion": "Green."}, (Answer("Green.", 1.0),)),
    "alpaca": ({"instruction": "Translate.", "input": "le thé", "output": "tea"}, (Answer("tea", 1.0),)),
    "conversation": ({"messages": [USER, BLACK, MORE, GREEN]}, (Answer("Green.", 1.0, conversation=True),)),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Which tea?"}, {"from": "gpt", "value": "Green."}]},
        (Answer("Green.", 1.0, conversation=True),),
    ),
    "dialogue alone": ({"chosen": DIALOGUE + " Green."}, (Answer("Green.", 1.0),)),
    "chosen, nothing rejected": (TEA | {"chosen": "Green.", "rejected": None}, (Answer("Green.", 1.0),)),
    "none": (TEA, ()),
    "unanswered": ({"messages": [USER]}, ()),
    "lists of two lengths": (TEA | {"responses": ["a", "b"], "scores": [1.0]}, ()),
    "a score that is none": (TEA | {"responses": ["a", "b"], "scores": [1.0, "good"]}, ()),
    "an answer that is none": (TEA | {"chosen": 3, "rejected": "Black."}, ()),
    "completions of texts": (TEA | {"completions": ["a"]}, ()),
    "an answer of the user's": ({"prompt": [USER], "chosen": [MORE], "rejected": [BLACK]}, ()),
}


def prompts_of(folder: Path, *rows: dict[str, Any], **options: Any) -> list[Prompt]:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return list(JsonlPrompts(str(file), **options))


@pytest.mark.parametrize(("row", "answers"), ROWS.values(), ids=ROWS)
def test_answers_of_every_layout(row: dict[str, Any], answers: tuple[Answer, ...], tmp_path: Path) -> None:
    (prompt,) = prompts_of(tmp_path, row)  # what can't be read is no error: an online run has no use for it
    assert prompt.answers == answers
    (other,) = prompts_of(tmp_path, dict.fromkeys(("chosen", "rejected", "responses", "scores", "completions", "completion")) | row)
    assert other.answers == answers, "null counts as missing"


def test_parquet_has_the_same(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [ROWS["pair of conversations"][0], {"chosen": [USER, GREEN], "rejected": [USER, BLACK]}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert [prompt.answers for prompt in ParquetPrompts(str(tmp_path / "rows.parquet"))] == [BETTER, BETTER]


ODD = {
    "prompt": "Which tea?",
    "chosen": "x",
    "rejected": "y",
    "good": "Green.",
    "poor": "Black.",
    "all": ["Green.", "Black."],
    "marks": [1, 0],
    "list": [{"text": "Green.", "mark": 1}, {"text": "Black.", "mark": 0}],
    "fine": True,
}


@pytest.mark.parametrize(
    ("named", "answers"),
    [
        (Pair("good", "poor"), BETTER),
        (Ranked("all", "marks"), BETTER),
        (Completions("list", "text", "mark"), BETTER),
        (Labelled("good", "fine"), BETTER[:1]),
        (Demonstration("good"), BETTER[:1]),
    ],
)
def test_named_columns_win(named: Answers, answers: tuple[Answer, ...], tmp_path: Path) -> None:
    (prompt,) = prompts_of(tmp_path, ODD, answers=named)
    assert prompt.answers == answers


def test_last_turns_alone(tmp_path: Path) -> None:
    (prompt,) = prompts_of(tmp_path, ROWS["conversation"][0], answers=Demonstration(every_turn=False))
    assert prompt.answers == (Answer("Green.", 1.0, conversation=False),)


@pytest.mark.parametrize("named", [Pair("good", "gone"), Ranked("all", "fine"), Labelled("good", "poor"), Demonstration("marks")])
def test_columns_that_are_named_have_to_be_there(named: Answers, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"row 0 \(counted from 0\): expected {type(named).__name__}\(.*found 'prompt', 'chosen'.*`answers`"
    ):
        prompts_of(tmp_path, ODD, answers=named)
