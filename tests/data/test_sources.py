"""Where prompts come from: contents, ids that never move, and messages for every mistake in a file."""

import json
import re

import pyarrow as pa
import pytest
from pyarrow import parquet

from lit_align.data.sources import (
    DatasetPrompts,
    DatasetStream,
    JsonlPrompts,
    JsonlStream,
    ListPrompts,
    MixedPrompts,
    ParquetPrompts,
    prompt_id,
)
from lit_align.types import UserError

USER = {"role": "user", "content": "Hi."}
SYSTEM = {"role": "system", "content": "Be brief."}
ASSISTANT = {"role": "assistant", "content": "Hello."}
ROWS = [
    {"prompt": "One", "answer": "1", "level": 3},
    {"prompt": "Two", "answer": None, "level": 4},
    {"prompt": "Three", "answer": "3", "level": 5},
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def jsonl(folder, rows, name="poems.jsonl"):
    path = folder / name
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def parquet_file(folder, rows, name="poems.parquet"):
    parquet.write_table(pa.Table.from_pylist(rows), folder / name)
    return str(folder / name)


def dataset_folder(folder, rows, name="poems"):
    (folder / name).mkdir(exist_ok=True)
    jsonl(folder / name, rows, "train.jsonl")
    return str(folder / name)


@pytest.fixture
def quiet_datasets(tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


MAKERS = {
    "jsonl": lambda folder, rows, **options: JsonlPrompts(jsonl(folder, rows), **options),
    "parquet": lambda folder, rows, **options: ParquetPrompts(parquet_file(folder, rows), **options),
    "dataset": lambda folder, rows, **options: DatasetPrompts(dataset_folder(folder, rows), **options),
}


@pytest.fixture(params=MAKERS)
def make(request, folder, quiet_datasets):
    """A source of each kind, of the same rows."""
    return lambda rows, **options: MAKERS[request.param](folder, rows, **options)


def test_every_kind_gives_the_same_prompts(make):
    source = make(ROWS, reference_field="answer", name="poems")
    assert [source[i] for i in range(len(source))] == list(source)
    assert [p.content for p in source] == ["One", "Two", "Three"]
    assert [p.reference for p in source] == ["1", None, "3"]
    assert [p.meta for p in source] == [{"level": 3}, {"level": 4}, {"level": 5}]
    assert [p.id for p in source] == [prompt_id("poems", row) for row in range(3)]


def test_without_a_reference_field_the_answer_stays_in_meta(make):
    first = make(ROWS)[0]
    assert first.reference is None
    assert first.meta == {"answer": "1", "level": 3}


def test_max_prompts_takes_the_first(make):
    assert [p.content for p in make(ROWS, max_prompts=2)] == ["One", "Two"]


def test_max_prompts_may_exceed_the_rows(make):
    assert len(make(ROWS, max_prompts=9)) == 3


def test_index_counts_from_the_end_and_stops(make):
    source = make(ROWS)
    assert source[-1] == source[2]
    with pytest.raises(IndexError):
        source[3]


def test_messages_win_over_a_prompt_which_goes_to_meta(make):
    prompt = make([{"prompt": "Hi.", "messages": [SYSTEM, USER]}])[0]
    assert prompt.content == (SYSTEM, USER)
    assert prompt.meta == {"prompt": "Hi."}


def test_messages_that_are_null_leave_the_prompt(make):
    assert [p.content for p in make([{"prompt": "A", "messages": None}, {"prompt": "B", "messages": [USER]}])] == ["A", (USER,)]


def test_a_field_that_is_named_is_the_only_one_that_is_looked_at(make):
    rows = [{"prompt": "Hi.", "messages": [USER, ASSISTANT], "instruction": "Ho."}]
    assert make(rows)[0].content == (USER,)
    assert make(rows, prompt_field="prompt")[0].content == "Hi."
    assert make(rows, prompt_field="instruction")[0].content == "Ho."
    with fails("row 0", "expected a text in 'question', but found 'prompt', 'messages', 'instruction'", "prompt_field or messages_field"):
        make(rows, prompt_field="question")
    with fails("row 0", "expected a text in 'question' or a list of messages in 'chat'"):
        make(rows, prompt_field="question", messages_field="chat")


def test_a_prompt_may_itself_be_a_conversation(make):
    prompt = make([{"prompt": [USER], "level": 1}])[0]
    assert prompt.content == (USER,)
    assert prompt.meta == {"level": 1}


def test_fields_can_be_renamed(make):
    rows = [{"question": "A", "chat": None}, {"question": "B", "chat": [USER]}]
    assert [p.content for p in make(rows, prompt_field="question", messages_field="chat")] == ["A", (USER,)]


def test_further_texts_of_a_message_are_kept_and_nulls_are_not(make):
    content = make([{"messages": [{**SYSTEM, "name": "rules"}, {**USER, "name": None}]}])[0].content
    assert content == ({**SYSTEM, "name": "rules"}, USER)


def test_default_name_is_the_files_stem_wherever_it_lies(folder):
    (folder / "elsewhere").mkdir()
    here, there = JsonlPrompts(jsonl(folder, ROWS)), JsonlPrompts(jsonl(folder / "elsewhere", ROWS))
    assert here[1].id == there[1].id == prompt_id("poems", 1)
    assert ParquetPrompts(parquet_file(folder, ROWS))[1].id == prompt_id("poems", 1)


def test_default_name_of_a_dataset_tells_its_splits_apart(folder, quiet_datasets):
    path = dataset_folder(folder, ROWS)
    jsonl(folder / "poems", ROWS, "test.jsonl")
    assert DatasetPrompts(path)[0].id == prompt_id("poems/train", 0)
    assert DatasetPrompts("poems", split="test")[0].id == prompt_id("poems/test", 0)


def test_ids_are_distinct_non_negative_and_fixed_for_ever():
    ids = {prompt_id(name, row) for name in ("a", "b", "a1") for row in range(1000)}
    assert len(ids) == 3000
    assert all(0 <= number < 2**63 for number in ids)
    assert max(ids) > 2**62  # all 63 bits are used
    assert prompt_id("poems", 0) == 6586576226361110871  # b2sum -l 64 of ["poems", 0], halved: labels of old runs are found by it


def test_a_blank_line_is_no_prompt_but_a_number(folder):
    source = JsonlPrompts(jsonl(folder, ["", ROWS[0], "   ", ROWS[1]]))
    assert [(p.content, p.id) for p in source] == [("One", prompt_id("poems", 1)), ("Two", prompt_id("poems", 3))]


def test_max_prompts_counts_prompts_not_lines(folder):
    assert [p.content for p in JsonlPrompts(jsonl(folder, ["", *ROWS]), max_prompts=2)] == ["One", "Two"]


def test_only_a_newline_ends_a_line(folder):
    text = "a\u2028b\x85c"
    (folder / "p.jsonl").write_bytes(b"\xef\xbb\xbf" + json.dumps({"prompt": text}, ensure_ascii=False).encode() + b'\r\n{"prompt": "d"}')
    assert [p.content for p in JsonlPrompts("p.jsonl")] == [text, "d"]


# Mistakes


def fails(*parts):
    """A UserError whose message has these parts, in this order."""
    return pytest.raises(UserError, match="(?s)" + ".*".join(re.escape(str(part)) for part in parts))


@pytest.mark.parametrize("kind", [JsonlPrompts, ParquetPrompts])
def test_missing_file(kind, folder):
    with fails("no/such.file", "nothing", folder):
        kind("no/such.file")
    with fails(folder, "a folder"):
        kind(str(folder))


@pytest.mark.parametrize("lines", [[], ["", " "]])
def test_empty_jsonl(lines, folder):
    with fails("poems.jsonl", "at least one prompt", "empty"):
        JsonlPrompts(jsonl(folder, lines))


def test_empty_parquet(folder):
    parquet.write_table(pa.table({"prompt": pa.array([], pa.string())}), folder / "p.parquet")
    with fails("p.parquet", "at least one prompt", "empty"):
        ParquetPrompts("p.parquet")


def test_malformed_line_is_named_from_one(folder):
    with fails("poems.jsonl, line 3", "expected one JSON object", "delimiter"):
        JsonlPrompts(jsonl(folder, [ROWS[0], "", '{"prompt" "Two"}']))


def test_line_that_is_no_object(folder):
    with fails("poems.jsonl, line 2", "expected a JSON object", "'Two' (str)"):
        JsonlPrompts(jsonl(folder, [ROWS[0], '"Two"']))


def test_line_in_another_encoding(folder):
    (folder / "p.jsonl").write_bytes(b'{"prompt": "a"}\n{"prompt": "\xe9"}\n')
    with fails("p.jsonl, line 2", "UTF-8", "0xe9"):
        JsonlPrompts("p.jsonl")


def test_file_that_is_no_parquet(folder):
    with fails("poems.jsonl", "expected a Parquet file"):
        ParquetPrompts(jsonl(folder, ROWS))


def test_row_without_a_prompt_names_its_fields_and_the_options(make):
    with fails("row 0", "'prompt'", "'messages'", "found 'question', 'level'", "prompt_field or messages_field"):
        make([{"question": "A", "level": 1}])


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_every_row_of_a_file_is_checked_before_the_run(kind, folder):
    with fails("row 2", "found 'prompt' (null)"):
        MAKERS[kind](folder, [{"prompt": "A"}, {"prompt": "B"}, {"prompt": None}])


def test_the_row_number_counts_blank_lines(folder):
    with fails("row 2 (counted from 0)", "found 'text'"):
        JsonlPrompts(jsonl(folder, [ROWS[0], "", {"text": "a"}]))


def test_a_later_row_of_a_dataset_is_checked_when_read(folder, quiet_datasets):
    source = DatasetPrompts(dataset_folder(folder, [{"prompt": "A"}, {"prompt": None}]))
    with fails("row 1", "found 'prompt' (null)"):
        source[1]


def test_prompt_of_the_wrong_type(make):
    with fails("row 0", "field 'prompt'", "a text or a list of messages", "got 3 (int)"):
        make([{"prompt": 3}])


@pytest.mark.parametrize("messages", ["Hi.", 3, []])
def test_messages_of_the_wrong_type(messages, folder):
    with fails("row 0", "field 'messages'", "expected a list of messages", messages):
        JsonlPrompts(jsonl(folder, [{"messages": messages}]))


@pytest.mark.parametrize("message", ["Hi.", {"role": "user"}, {"role": "user", "content": 3}, {"role": None, "content": "a"}])
def test_message_of_the_wrong_type(message, folder):
    with fails("row 0", "field 'messages', message 1", "'role' and 'content'", f"({type(message).__name__})"):
        JsonlPrompts(jsonl(folder, [{"messages": [USER, message]}]))


@pytest.mark.parametrize("options", [{}, {"messages_field": "messages"}])
def test_an_answered_conversation_is_prompt_and_answer(options, make):
    rows = [{"messages": [SYSTEM, USER, ASSISTANT, USER, ASSISTANT], "level": 1}]
    (prompt,) = make(rows, **options)
    assert prompt.content == (SYSTEM, USER, ASSISTANT, USER)
    assert prompt.reference is None
    assert prompt.meta == rows[0], "a column that holds more than the prompt is kept"
    (asked,) = make(rows, reference_field="messages", **options)
    assert (asked.content, asked.reference, asked.meta) == (prompt.content, "Hello.", {"level": 1})


def test_prompt_that_is_already_answered(make):
    with fails("row 0", "field 'prompt'", "the assistant's", "messages_field to 'prompt'"):
        make([{"prompt": [USER, ASSISTANT]}])


def test_texts_become_messages_where_it_is_asked_for(make):
    rows = [{"prompt": "Hi."}, {"prompt": "\n\nHuman: Hi.\n\nAssistant: Hello.\n\nHuman: Ho.\n\nAssistant:"}]
    assert [p.content for p in make(rows)] == [row["prompt"] for row in rows]
    assert [p.content for p in make(rows, chat=True)] == [(USER,), (USER, ASSISTANT, {"role": "user", "content": "Ho."})]


def test_reference_of_the_wrong_type_or_name(make):
    with fails("row 0", "field 'level'", "a text or null", "3 (int)"):
        make(ROWS, reference_field="level")


def test_reference_field_that_is_not_there(make):
    with fails("row 0", "'solution'", "found 'prompt', 'answer', 'level'", "reference_field"):
        make(ROWS, reference_field="solution")


def test_max_prompts_must_be_positive(make):
    with fails("max_prompts", "got 0"):
        make(ROWS, max_prompts=0)


def test_dataset_that_cannot_be_loaded(folder, quiet_datasets):
    with fails("'poems'", "split 'validation'", "validation"):
        dataset_folder(folder, ROWS)
        DatasetPrompts("poems", split="validation")
    with fails("'./nowhere'", "can't be loaded", folder):
        DatasetPrompts("./nowhere")


def test_list():
    source = ListPrompts(["a", "b"], name="mine")
    assert [(p.content, p.id) for p in source] == [("a", prompt_id("mine", 0)), ("b", prompt_id("mine", 1))]
    assert source[-1].id == source[1].id
    assert ListPrompts(["a"])[0].id == prompt_id("list", 0)


def test_list_without_texts():
    with fails("ListPrompts", "at least one", "none"):
        ListPrompts([])
    with fails("ListPrompts, prompt 1", "expected a text", "3 (int)"):
        ListPrompts(["a", 3])  # pyright: ignore[reportArgumentType]


# Streams

STREAMS = {
    "jsonl": lambda folder, rows, **options: JsonlStream(jsonl(folder, rows), **options),
    "jsonl folder": lambda folder, rows, **options: DatasetStream(dataset_folder(folder, rows), **options),
    "parquet folder": lambda folder, rows, **options: DatasetStream(parquet_folder(folder, rows), **options),
}


def parquet_folder(folder, rows):
    (folder / "poems").mkdir()
    parquet_file(folder / "poems", rows, "train.parquet")
    return str(folder / "poems")


@pytest.fixture(params=STREAMS)
def stream(request, folder, quiet_datasets):
    """A stream of each kind, of the same rows."""
    return lambda rows, **options: STREAMS[request.param](folder, rows, **options)


def test_a_stream_has_the_prompts_of_the_file(stream, tmp_path):
    options = {"reference_field": "answer", "name": "poems"}
    expected = list(JsonlPrompts(jsonl(tmp_path, ROWS, "same.jsonl"), **options))
    source = stream(ROWS, **options)
    assert list(source) == list(source) == expected, "every reading begins anew"
    assert [list(source.read(start)) for start in range(5)] == [expected[start:] for start in range(5)]


def test_max_prompts_ends_a_reading_of_a_stream(stream):
    source = stream(ROWS, max_prompts=2)
    assert [[p.content for p in source.read(start)] for start in range(4)] == [["One", "Two"], ["Two"], [], []]


def test_a_stream_and_the_file_have_the_same_ids_by_default(folder, quiet_datasets):
    rows = ["", *ROWS]
    assert [p.id for p in JsonlStream(jsonl(folder, rows))] == [p.id for p in JsonlPrompts("poems.jsonl")]
    path = dataset_folder(folder, ROWS)
    assert [p.id for p in DatasetStream(path)] == [p.id for p in DatasetPrompts(path)]


def test_a_stream_is_opened_before_the_run_and_read_during_it(folder):
    with fails("row 0", "found 'text'"):
        JsonlStream(jsonl(folder, [{"text": "a"}]))
    with fails("poems.jsonl", "at least one prompt", "empty"):
        JsonlStream(jsonl(folder, [""]))
    source = JsonlStream(jsonl(folder, [ROWS[0], "no json"]))
    with fails("poems.jsonl, line 2"):
        list(source)
    with fails("max_prompts", "got 0"):
        JsonlStream("poems.jsonl", max_prompts=0)


# Mixtures


def lists(*names):
    return [ListPrompts([f"{name}{row}" for row in range(2)], name=name) for name in names]


def test_a_mixture_is_all_of_its_sources():
    mixture = MixedPrompts([*lists("a", "b")], [1, 3])
    assert [p.content for p in mixture] == ["a0", "a1", "b0", "b1"]
    assert (list(mixture.sources), mixture.shares) == (["a", "b"], {"a": 0.25, "b": 0.75})
    assert MixedPrompts([*lists("a", "b")]).shares == {"a": 0.5, "b": 0.5}


@pytest.mark.parametrize("names", [[], ["a", "a"], ["a", ""]])
def test_names_of_a_mixture(names):
    with fails("MixedPrompts", "different names", ", ".join(map(repr, names)) or "none", "`name`"):
        MixedPrompts([*lists(*names)])


def test_two_files_of_one_name_need_another(folder):
    (folder / "elsewhere").mkdir()
    files = jsonl(folder, ROWS), jsonl(folder / "elsewhere", ROWS)
    with fails("'poems', 'poems'"):
        MixedPrompts([JsonlPrompts(file) for file in files])
    ids = [p.id for p in MixedPrompts([JsonlPrompts(files[0]), JsonlPrompts(files[1], name="more")])]
    assert len(set(ids)) == 6, "equal row numbers, other prompts"


def test_a_dataset_may_not_be_called_as_a_metric():
    with fails("reward/mean"):
        MixedPrompts([*lists("a", "mean")])


def test_a_mixture_of_mixtures():
    with fails("no mixtures"):
        MixedPrompts([MixedPrompts([*lists("a")]), *lists("b")])


@pytest.mark.parametrize("weights", [[1], [1, 1, 1], [-1, 2], [0, 0], [float("inf"), 1]])
def test_weights_of_a_mixture(weights):
    with fails("2 weights", "'a', 'b'", "got", weights, "`weights`"):
        MixedPrompts([*lists("a", "b")], weights)
