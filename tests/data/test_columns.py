"""Rows as other projects write them: what is the prompt, what is the answer, and what is said of a row that is neither."""

import json
import os
from pathlib import Path

import pytest

from lit_align.data.columns import LAYOUTS, answer_in, recognised
from lit_align.data.messages import as_chat
from lit_align.data.sources import JsonlPrompts
from lit_align.types import UserError

SYSTEM = {"role": "system", "content": "Be brief."}
USER = {"role": "user", "content": "Which tea?"}
GREEN = {"role": "assistant", "content": "Green."}
BLACK = {"role": "assistant", "content": "Black."}
MORE = {"role": "user", "content": "And with milk?"}
DIALOGUE = "\n\nHuman: Which tea?\n\nAssistant: Green.\n\nHuman: And with milk?\n\nAssistant:"

# What it is called: the row, the prompt, its answers, and what stays in meta.
ROWS = {
    "trl prompt-completion": ({"prompt": "Which tea?", "completion": "Green."}, "Which tea?", {"completion": "Green."}),
    "trl chats": ({"prompt": [SYSTEM, USER], "completion": [GREEN]}, (SYSTEM, USER), {"completion": "Green."}),
    "trl preferences": (
        {"prompt": "Which tea?", "chosen": "Green.", "rejected": "Black."},
        "Which tea?",
        {"chosen": "Green.", "rejected": "Black."},
    ),
    "trl preferences as chats": (
        {"prompt": [USER], "chosen": [GREEN], "rejected": [BLACK]},
        (USER,),
        {"chosen": "Green.", "rejected": "Black."},
    ),
    "a text with an answer as a chat": ({"prompt": "Which tea?", "chosen": [GREEN]}, "Which tea?", {"chosen": "Green."}),
    "openai": ({"messages": [SYSTEM, USER, GREEN]}, (SYSTEM, USER), {"messages": "Green."}),
    "openai, unanswered": ({"messages": [USER, GREEN, MORE]}, (USER, GREEN, MORE), {}),
    "messages beside answers": ({"messages": [USER], "chosen": "Green.", "rejected": "Black."}, (USER,), {"rejected": "Black."}),
    "sharegpt": (
        {"conversations": [{"from": "human", "value": "Which tea?"}, {"from": "gpt", "value": "Green."}]},
        (USER,),
        {"conversations": "Green."},
    ),
    "sharegpt beside answers": (
        {"conversations": [{"from": "human", "value": "Which tea?"}], "chosen": {"from": "gpt", "value": "Green."}},
        (USER,),
        {"chosen": "Green."},
    ),
    "hh": (
        {"chosen": DIALOGUE + " With milk.", "rejected": DIALOGUE + " Without."},
        DIALOGUE,
        {"chosen": "With milk.", "rejected": "Without."},
    ),
    "hh, chosen alone": ({"chosen": DIALOGUE + " With milk."}, DIALOGUE, {"chosen": "With milk."}),
    "hh, answers that begin alike": (
        {"chosen": DIALOGUE + " Yes, do.", "rejected": DIALOGUE + " Yes, but."},
        DIALOGUE,
        {"chosen": "Yes, do.", "rejected": "Yes, but."},
    ),
    "hh, dialogues that part early": (
        {"chosen": DIALOGUE + " Yes.", "rejected": "\n\nHuman: Which tea?\n\nAssistant: Black."},
        "\n\nHuman: Which tea?\n\nAssistant:",
        {"rejected": "Black."},
    ),
    "ultrafeedback": ({"instruction": "Which tea?", "completions": [{"response": "Green."}]}, "Which tea?", {}),
    "ultrafeedback, binarised": (
        {"prompt": "Which tea?", "chosen": [USER, GREEN], "rejected": [USER, BLACK], "score_chosen": 8.0},
        (USER,),
        {"chosen": "Green.", "rejected": "Black."},
    ),
    "ultrafeedback, several turns": (
        {"chosen": [SYSTEM, USER, GREEN, MORE, GREEN], "rejected": [SYSTEM, USER, GREEN, MORE, BLACK]},
        (SYSTEM, USER, GREEN, MORE),
        {"chosen": "Green.", "rejected": "Black."},
    ),
    "the same answer twice": ({"chosen": [USER, GREEN], "rejected": [USER, GREEN]}, (USER,), {"chosen": "Green.", "rejected": "Green."}),
    "chosen alone": ({"chosen": [USER, GREEN]}, (USER,), {"chosen": "Green."}),
    "alpaca": ({"instruction": "Translate.", "input": "le thé", "output": "tea"}, "Translate.\n\nle thé", {"output": "tea"}),
    "alpaca, no input": ({"instruction": "Which tea?", "input": "", "output": "Green."}, "Which tea?", {"output": "Green."}),
}  # fmt: skip


@pytest.fixture(params=[pytest.param(value, id=key) for key, value in ROWS.items()])
def known(request):
    return request.param


def test_prompt_and_answers_of_every_layout(known):
    row, content, answers = known
    columns = recognised(row, "here")
    assert columns.content == content
    for column, text in answers.items():
        assert answer_in(row, column, columns, "here") == text, column


def test_null_columns_and_the_order_of_columns_change_nothing(known):
    row, content, _ = known
    filled = dict.fromkeys(("messages", "conversations", "prompt", "chosen", "rejected", "instruction", "input")) | row
    assert recognised(filled, "here") == recognised(row, "here")
    assert recognised(dict(reversed(row.items())), "here").content == content


def test_nothing_of_a_row_is_lost(known, tmp_path):
    """What is in no meta is in the prompt, whole."""
    row, content, _ = known
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row), encoding="utf-8")
    (prompt,) = JsonlPrompts(str(file))
    for column in row.keys() - prompt.meta.keys():
        shown = json.dumps(content, ensure_ascii=False)
        texts = [m.get("content", m.get("value")) for m in row[column]] if isinstance(row[column], list) else [row[column]]
        assert all(json.dumps(text, ensure_ascii=False)[1:-1] in shown for text in texts), column
    assert all(prompt.meta[column] == row[column] for column in prompt.meta)


def test_the_first_layout_in_the_documented_order_decides():
    whole = {
        "messages": [{"role": "user", "content": "one"}],
        "conversations": [{"from": "human", "value": "two"}],
        "chosen": [{"role": "user", "content": "three"}, GREEN],
        "prompt": "four",
        "instruction": "six",
    }
    contents = []
    for column in ("messages", "conversations", "chosen", "prompt"):
        content = recognised(whole, "here").content
        contents.append(content if isinstance(content, str) else content[0]["content"])
        del whole[column]
    assert contents == ["one", "two", "three", "four"]
    assert recognised(whole | {"chosen": DIALOGUE + " Yes."}, "here").content == DIALOGUE
    assert recognised(whole, "here").content == "six"
    assert recognised({"prompt": [SYSTEM, USER], "chosen": [USER, GREEN]}, "here").content == (SYSTEM, USER), (
        "messages that are said to be it"
    )
    assert len(LAYOUTS) == 6


def fails(*parts):
    return pytest.raises(UserError, match="(?s)" + ".*".join(part.replace("(", r"\(").replace(")", r"\)") for part in parts))


@pytest.mark.parametrize(
    "row",
    [
        {"question": "Which tea?", "level": 2},
        {"question": "a", "chosen": "Green.", "rejected": "Black."},
        {"question": "a", "chosen": [GREEN]},
    ],
)
def test_a_row_of_no_layout_names_its_columns(row):
    with fails(
        "here: expected a prompt in 'prompt', 'messages', 'conversations', 'instruction'",
        f"found 'question', '{[*row][1]}'",
        "prompt_field",
    ):
        recognised(row, "here")


def test_a_column_that_is_not_what_its_name_says_is_no_other_layout():
    with fails("here, field 'messages'", "expected a list of messages", "Which tea?"):
        recognised({"messages": "Which tea?", "prompt": "Which tea?"}, "here")
    with fails("here, field 'conversations', message 0 (counted from 0)", "one of system, human", "'from': 'narrator'"):
        recognised({"conversations": [{"from": "narrator", "value": "Once."}]}, "here")
    with fails("here, field 'messages'", "every one is the assistant's"):
        recognised({"messages": [GREEN]}, "here")


@pytest.mark.parametrize("answer", [3, ["Green."], [GREEN, BLACK], [USER], [{"response": "Green."}], []])
def test_an_answer_that_is_none_or_several(answer):
    row = {"prompt": "Which tea?", "completion": answer}
    with fails("here, field 'completion': expected one answer, a text or null"):
        answer_in(row, "completion", recognised(row, "here"), "here")


def test_a_transcript_that_begins_or_ends_otherwise_is_a_text():
    assert [len(as_chat(text)) for text in (DIALOGUE, "Dear Human," + DIALOGUE, DIALOGUE + " Yes.")] == [3, 1, 1]
    assert [m["content"] for m in as_chat(DIALOGUE)] == ["Which tea?", "Green.", "And with milk?"]
    assert as_chat((SYSTEM, USER)) == (SYSTEM, USER)


def test_two_turns_in_a_row_become_one():
    text = DIALOGUE.replace(" Green.", " Green.\n\nAssistant: Or black.")
    assert [m["content"] for m in as_chat(text)] == ["Which tea?", "Green.\n\nOr black.", "And with milk?"]


# Files as they were published; their texts stay where they are

DATA = Path(os.environ.get("LIT_ALIGN_DATA", "nowhere"))
published = pytest.mark.skipif(not (DATA / "hh_harmless_base").is_dir(), reason="LIT_ALIGN_DATA has no published files")


@published
@pytest.mark.parametrize("name", ["hh_harmless_base", "hh_helpful_base", "hh_helpful_online", "hh_helpful_rs"])
def test_hh_as_it_was_published(name):
    """The files here have the prompt cut out; put back together, they are cut at the same place."""
    for line in (DATA / name / "dev.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        whole = {column: f"{row['prompt']} {row[column]}" for column in ("chosen", "rejected")}
        columns = recognised(whole, name)
        assert columns.content == row["prompt"]
        assert [answer_in(whole, column, columns, name) for column in whole] == [row[column].strip() for column in whole]
        roles = [m["role"] for m in as_chat(row["prompt"])]
        assert roles == (["user", "assistant"] * len(roles))[: len(roles)]
        assert len(roles) % 2 == 1
        assert len(roles) == 2 * row["human_turns"] - 1 or row["prompt"].count("\n\nAssistant:") > row["human_turns"]


@published
@pytest.mark.parametrize(("name", "kind", "reference"), [("dpo_en_demo", tuple, "chosen"), ("tulu_human", str, "output_1")])
def test_other_published_files(name, kind, reference):
    prompts = JsonlPrompts(str(DATA / name / "dev.jsonl"), reference_field=reference)
    assert {type(p.content) for p in prompts} == {kind}
    assert all(p.reference for p in prompts)
