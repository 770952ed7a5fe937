"""What is read of an answer, which read-out is chosen and kept, and where a key may be."""

import asyncio
import json
import math
import re
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("openai", reason="the extra api is not installed")

from lit_align.annotators import ChatAPI, PairwiseJudge, ScoringJudge
from lit_align.annotators.readout import option_logps
from lit_align.cli import main
from lit_align.metering import metered
from lit_align.types import UserError
from tests.annotators.worlds import PAIRWISE, SCORING, rollouts
from tests.servers.faulty import FaultyServer, cut, fails, says
from tests.servers.meters import Notebook
from tests.tiny import write_prompts, write_tiny

ROOT = Path(__file__).parents[2]
TEN = tuple(str(i) for i in range(1, 11))
TWO = ("1", "2")
TABLE = {"1": math.log(0.2), "10": math.log(0.3), " 2": math.log(0.05), "2": math.log(0.1), "2\n": math.log(0.05), "12": math.log(0.3)}


def messages(*texts):
    return [({"role": "user", "content": text},) for text in texts]


def ask(url, options=TEN, texts=("which?",), meter=None, **settings):
    with metered(meter or Notebook()):
        api = ChatAPI("m", url, api_key_env=None, **settings)
        return api.option_logps(messages(*texts), options)


# Whose answer it is


@pytest.mark.parametrize("readout", ["logprobs", "auto", "text"])
def test_servers_that_call_their_models_the_same_answer_for_themselves(readout):
    """Each is asked once, and tried once for its read-out."""
    notes, tried = Notebook(), [] if readout == "text" else [says("10", {"10": 0.0})]
    with FaultyServer(tried, says("7", {"7": 0.0})) as one, FaultyServer(tried, says("3", {"3": 0.0})) as other:
        for _ in range(2):
            found = [int(ask(server.url, meter=notes, readout=readout).argmax()) + 1 for server in (one, other)]
            assert found == [7, 3]
        assert int(ask(one.url + "/", meter=notes, readout=readout).argmax()) + 1 == 7, "the same address"
        assert len(one.requests) == len(other.requests) == 1 + len(tried)


def test_what_was_written_down_without_a_server_is_still_known():
    notes = Notebook()
    with FaultyServer(otherwise=says("7")) as server:
        ask(server.url, meter=notes, readout="text")
        (question,) = notes.known
        asked = json.loads(question)
        assert asked.pop("server") == server.url
        old = Notebook()
        old.known[json.dumps(asked, sort_keys=True, separators=(",", ":"))] = notes.known[question]
        ask(server.url, meter=old, readout="text")
        assert len(server.requests) == 1
        assert old.told == []


# What is read


def test_log_probs_are_those_of_the_first_token_white_space_aside():
    p = torch.tensor(option_logps(json.dumps({"logprobs": list(TABLE.items())}), TEN)).exp()
    assert p.tolist() == pytest.approx([0.2, 0.2, *[0.0] * 7, 0.3])


@pytest.mark.parametrize(
    ("text", "option"), [("10", 9), (" 1\n", 0), ("1.", None), ("Grade: 7", None), ("7 or 8", None), ("", None), ("0", None)]
)
def test_a_text_is_the_verdict_alone_or_none(text, option):
    logps = option_logps(json.dumps({"text": text}), TEN)
    if option is None:
        assert all(map(math.isnan, logps))
    else:
        assert logps == [0.0 if i == option else -math.inf for i in range(10)]


def test_the_first_token_is_asked_for_alone():
    with FaultyServer(otherwise=says("10", TABLE)) as server:
        logps = ask(server.url, top_logprobs=7, extra_body={"top_k": 3})
    assert logps.dtype == torch.float32
    assert logps[0].exp().tolist() == pytest.approx([0.2, 0.2, *[0.0] * 7, 0.3])
    sent = server.requests[-1]
    assert sent["messages"] == [{"role": "user", "content": "which?"}]
    assert {name: sent[name] for name in ("model", "max_tokens", "logprobs", "top_logprobs", "top_k")} == {
        "model": "m", "max_tokens": 1, "logprobs": True, "top_logprobs": 7, "top_k": 3,
    }  # fmt: skip


def test_a_text_is_asked_for_greedily_unless_told_otherwise():
    with FaultyServer(otherwise=says("10")) as server:
        ask(server.url, readout="text")
        ask(server.url, readout="text", temperature=None, max_tokens=None)
    one, other = server.requests
    assert (one["temperature"], one["max_tokens"]) == (0.0, 16)
    assert set(other) == {"model", "messages"}


@pytest.mark.parametrize(
    ("reply", "readout"),
    [(says(None), "text"), (says("I would say 7."), "text"), (says("7", {}), "logprobs"), (says("x", {"x": 0.0}), "logprobs")],
)
def test_a_verdict_that_is_none_is_invalid_never_invented(reply, readout, tmp_path):
    (tmp_path / "scoring.yaml").write_text(SCORING, encoding="utf-8")
    probe = [says("10", {"10": 0.0})] if readout == "logprobs" else []
    with FaultyServer(probe, reply) as server:
        judge = ScoringJudge(ChatAPI("m", server.url, api_key_env=None, readout=readout), str(tmp_path / "scoring.yaml"))
        with pytest.warns(UserWarning, match="3 of 3 times"):
            annotation = judge.annotate(rollouts([["a", "b", "c"]]))
    assert not annotation.valid.any()
    assert (annotation.scores == 0).all()


def test_a_text_cannot_be_continued():
    with pytest.raises(UserError, match="Give messages, or use LocalLM"):
        ChatAPI("m", "http://localhost/v1", api_key_env=None).option_logps(["a text"], TWO)


def test_it_works_where_an_event_loop_runs_already():
    async def notebook(url):
        return ask(url, TWO, readout="text")

    with FaultyServer() as server:
        assert asyncio.run(notebook(server.url)).tolist() == [[0.0, -math.inf]]


def test_nothing_to_ask_is_no_call():
    with FaultyServer() as server:
        assert ask(server.url, TWO, texts=(), readout="text").shape == (0, 2)
    assert server.requests == []


# Which read-out, once


@pytest.mark.parametrize(
    ("reply", "options", "readout"),
    [
        (says("1", {"1": -0.1, "2": -2.4}), TWO, "logprobs"),
        (says("10", {"10": -0.1, "1": -2.4}), TEN, "logprobs"),
        (says("1", {"1": -0.1, "2": -2.4}), TEN, "text"),  # "10" is two tokens, of which the first looks like the worst grade
        (says("1", {"1": -0.1}), tuple("0123456789"), "logprobs"),
        (says("1"), TWO, "text"),
        (says("1", {}), TWO, "text"),
        (fails(400, message="logprobs are not supported"), TWO, "text"),
    ],
)
def test_the_first_of_two_that_works(reply, options, readout):
    with FaultyServer([reply], says("1", {"1": -0.1})) as server:
        ask(server.url, options, texts=("a", "b"))
    probe, *questions = server.requests
    assert probe["messages"][0]["content"] == f"Answer with {max(options, key=len)} and nothing else."
    assert [("logprobs" in question) for question in questions] == [readout == "logprobs"] * 2


def test_log_probs_that_must_be_there_and_are_not():
    with FaultyServer(otherwise=says("1")) as server, pytest.raises(UserError, match=r"readout is logprobs, but .* gives no logprobs"):
        ask(server.url, TWO, readout="logprobs")
    single = r"'10' is no single token of this model.*a `scale` from 0 to 9"
    with FaultyServer(otherwise=says("1", {"1": -0.1})) as server, pytest.raises(UserError, match=single):
        ask(server.url, TEN, readout="logprobs")
    with FaultyServer(otherwise=fails(400, message="no such thing")) as server, pytest.raises(UserError, match="no such thing"):
        ask(server.url, TWO, readout="logprobs")


def test_what_the_server_says_against_log_probs_is_shown(caplog):
    """It may take five of them, but not twenty."""
    with FaultyServer([fails(400, message="at most 5")]) as server, caplog.at_level("INFO"):
        ask(server.url, TWO)
    assert re.search(r"ChatAPI reads text of m: the server takes no request with logprobs \(status 400: .*at most 5", caplog.text)


def test_a_resumed_run_reads_as_it_began():
    """Whatever the server can do by then."""
    with FaultyServer([says("1")], says("2", {"1": -0.1})) as server:
        meter = Notebook()
        before = ask(server.url, TWO, texts=("a",), meter=meter)
        after = ask(server.url, TWO, texts=("a", "b"), meter=meter)
        assert len(server.requests) == 3, "a probe, a; then b"
        assert "logprobs" not in server.requests[-1]
    assert before[0].tolist() == after[0].tolist() == after[1].tolist() == [-math.inf, 0.0]


def test_read_outs_are_not_mixed_where_the_server_stops_giving_log_probs():
    """Its answer could be read as a text, and is not."""
    meter = Notebook()
    with FaultyServer([says("1", {"1": -0.1})], says("1")) as server, pytest.raises(UserError, match="an answer without logprobs"):
        ask(server.url, TWO, meter=meter, max_paid_retries=0)
    assert meter.told == ["answered", "paid"]


def test_an_outage_decides_nothing():
    with FaultyServer([cut()], says("1", {"1": -0.1})) as server:
        api = ChatAPI("m", server.url, api_key_env=None, max_paid_retries=0)
        with pytest.raises(UserError, match="got none in 1 attempts"):
            api.option_logps(messages("a"), TWO)
        assert api._decided == {}
        assert api.option_logps(messages("a"), TWO)[0, 0].item() == pytest.approx(-0.1)


# Judges over it


def grades(body):
    """By the last letter of the response."""
    letter = body["messages"][0]["content"].split("|")[1][0]
    return says("x", {str(1 + "abcdefghij".index(letter)): math.log(0.75), "x": math.log(0.25)})


def test_a_scoring_judge_over_it(tmp_path):
    (tmp_path / "scoring.yaml").write_text(SCORING, encoding="utf-8")
    meter = Notebook()
    with FaultyServer([says("10", {"10": 0.0})], answer=grades) as server, metered(meter):
        judge = ScoringJudge(ChatAPI("m", server.url, api_key_env=None), str(tmp_path / "scoring.yaml"))
        annotation = judge.annotate(rollouts([["a", "j"], ["c", "a"]]))
    torch.testing.assert_close(annotation.scores, torch.tensor([[-1.0, 1.0], [-2.5 / 4.5, -1.0]]))
    assert annotation.mass.flatten().tolist() == pytest.approx([0.75] * 4)
    assert meter.told == ["answered"] * 4, "a probe and three different responses"


def test_a_pairwise_judge_over_it(tmp_path):
    (tmp_path / "pairwise.yaml").write_text(PAIRWISE, encoding="utf-8")

    def longer(body):
        first, second = body["messages"][0]["content"].split("|")[1:3]
        return says("2" if len(second) > len(first) else "1")

    with FaultyServer([says("1")], answer=longer) as server:
        judge = PairwiseJudge(ChatAPI("m", server.url, api_key_env=None), str(tmp_path / "pairwise.yaml"))
        annotation = judge.annotate(rollouts([["a", "bbb", "cc"]]))
    assert annotation.scores.tolist() == [[0.0, 1.0, 0.5]]


# Arguments and keys

KEY = "sk-tell-nobody-4711"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency should be at least 1, got 0"),
        ({"top_logprobs": 0}, "top_logprobs should be at least 1, got 0"),
        ({"max_tokens": 0}, "max_tokens should be at least 1, got 0"),
        ({"max_retries": -1}, "max_retries should be at least 0, got -1"),
        ({"max_paid_retries": -1}, "max_paid_retries should be at least 0"),
        ({"timeout": 0}, "timeout should be the seconds for one call"),
        ({"api_key_env": KEY}, "api_key_env should be the name of an environment variable"),
        ({"base_url": f"https://me:{KEY}@host/v1"}, "base_url should be an address"),
        ({"base_url": f"https://host/v1?key={KEY}"}, "base_url should be an address"),
        ({"base_url": "host/v1"}, "base_url should be an address"),
    ],
)
def test_arguments_that_make_no_sense_are_refused_and_what_may_be_a_key_is_not_shown(options, message):
    with pytest.raises(UserError, match=message) as error:
        ChatAPI(**({"model": "m", "base_url": "http://localhost/v1"} | options))
    assert KEY not in str(error.value)


@pytest.mark.parametrize(
    ("value", "found"), [(None, "not set"), ("  ", "not set"), ("sk-\ttell", "no text that can be sent"), ("schlüssel", "no text")]
)
def test_a_key_that_is_not_there_is_missed_before_anything_is_sampled(value, found, monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    if value is not None:
        monkeypatch.setenv("MY_KEY", value)
    with pytest.raises(UserError, match=rf"environment variable MY_KEY, but it is {found}") as error:
        ChatAPI("m", "http://localhost/v1", api_key_env="MY_KEY").setup(torch.device("cpu"))
    assert value is None or not value.strip() or value not in str(error.value)


def test_the_client_is_missed_by_name(monkeypatch):
    monkeypatch.setattr("lit_align.annotators.keys.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install lit-align\[api\]"):
        ChatAPI("m", "http://localhost/v1", api_key_env=None).setup(torch.device("cpu"))


def test_the_client_is_imported_when_it_is_needed():
    """It takes a second or more, which no other annotator should wait for."""
    for path in (ROOT / "lit_align").rglob("*.py"):
        at_once = [line for line in path.read_text(encoding="utf-8").splitlines() if re.match(r"(import|from) (openai|httpx2)", line)]
        assert not at_once, path.name


def repeats_the_key(status):
    """A server that says which key it was given."""
    return lambda handler: fails(status, message=f"no: {handler.headers['Authorization']}")(handler)


@pytest.mark.parametrize("status", [401, 400, 404, 500])
def test_a_key_is_in_no_message_even_if_the_server_repeats_it(status, monkeypatch):
    monkeypatch.setenv("MY_KEY", KEY)
    meter = Notebook()
    with FaultyServer(otherwise=repeats_the_key(status)) as server, metered(meter):
        api = ChatAPI("m", server.url, api_key_env="MY_KEY", readout="text", max_retries=0)
        with pytest.raises(UserError, match=r"Bearer \*\*\*") as error:
            api.option_logps(messages("a"), TWO)
    assert server.keys == [f"Bearer {KEY}"]
    shown = [str(error.value), repr(error.value.__cause__), repr(api), repr(vars(api)), api.identity, meter.everything()]
    assert not any(KEY in text for text in shown)


def by_length(body):
    """A 3 or a 9, or a 10 where that is asked for, with all certainty."""
    content = body["messages"][0]["content"]
    return says("x", {"10" if content.startswith("Answer with 10") else "39"[len(content) % 2]: 0.0})


@pytest.mark.filterwarnings("ignore:What .* costs is not known")  # nobody gave a price
def test_a_run_from_the_command_line_keeps_its_key_to_itself(tmp_path, monkeypatch, capfd, caplog):
    """Not a file of the run's folder has it: config, journal, logs, checkpoints."""
    write_tiny(tmp_path / "my-model")
    write_prompts(tmp_path / "prompts.jsonl")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("MY_KEY", KEY)
    small = {
        "trainer.accelerator": "cpu",
        "trainer.max_epochs": "1",
        "trainer.accumulate_grad_batches": "1",
        "trainer.enable_model_summary": "false",
        "data.init_args.prompts_per_rollout": "4",
        "data.init_args.micro_batch_prompts": "4",
        "data.init_args.sampler.init_args.max_new_tokens": "6",
        "data.init_args.annotator.init_args.backend.init_args.api_key_env": "MY_KEY",
        "run": "runs/a",
    }
    files = [ROOT / "configs" / file for file in ("algorithm/dar_anchored.yaml", "experiment/local.yaml", "annotator/chat_api.yaml")]
    with FaultyServer(answer=by_length) as server, caplog.at_level("DEBUG"):
        url = f"--data.init_args.annotator.init_args.backend.init_args.base_url={server.url}"
        main(["fit", *(f"--config={file}" for file in files), *(f"--{k}={v}" for k, v in small.items()), url])
    assert set(server.keys) == {f"Bearer {KEY}"}
    written = [path for path in (tmp_path / "runs" / "a").rglob("*") if path.is_file()]
    assert {"config.yaml", "labels-0.jsonl", "last.ckpt"} <= {path.name for path in written}
    assert [path for path in written if KEY.encode() in path.read_bytes()] == []
    output = capfd.readouterr()
    assert KEY not in output.out + output.err + caplog.text
    rows = [json.loads(line) for line in (tmp_path / "runs/a/journal/labels-0.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {round(score, 6) for row in rows for score in row["scores"]}
    assert found == {round((3 - 5.5) / 4.5, 6), round((9 - 5.5) / 4.5, 6)}
    assert [row["mass"] for row in rows] == [[1.0] * len(row["scores"]) for row in rows]
