"""Whatever a server does instead of answering: what becomes of the question, and what the meter is told of every attempt."""

import asyncio
import contextlib
import email.utils
import json
import math
import socket
import threading
import time
from dataclasses import replace

import pytest

pytest.importorskip("openai", reason="the extra api is not installed")

from lit_align.annotators import ChatAPI, ScoringJudge
from lit_align.annotators.attempt import retry_after
from lit_align.annotators.calls import Patience
from lit_align.metering import metered
from lit_align.types import UserError
from tests.annotators.worlds import SCORING
from tests.servers.faulty import FaultyServer, completion, cut, fails, says, sends, slow
from tests.servers.meters import Notebook
from tests.tiny import write_tiny
from tests.wheel.harness import fit

PATIENT = 30.0  # seconds; no test waits for it


def make_api(url, **options):
    """One that reads texts and hardly pauses."""
    api = ChatAPI("m", url, **({"api_key_env": None, "readout": "text", "timeout": PATIENT} | options))
    api.patience = replace(api.patience, first_pause=0.01)
    return api


def ask(api, meter, *texts):
    with metered(meter):
        return api.option_logps([[{"role": "user", "content": text}] for text in texts or ("which?",)], ("1", "2"))


NULL = sends('{"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": null, "error": {"message": "no"}}')
TRUNCATED = sends('{"id": "x", "object": "chat.completion", "choi')

# What comes instead of an answer, whether it may have been paid for, and what is said of it.
FAULTS = {
    "429": (fails(429), False, "429"),
    "429, come back": (fails(429, {"Retry-After": "0.02"}), False, "429"),
    "408": (fails(408), False, "408"),
    "409": (fails(409), False, "409"),
    "500": (fails(500), False, "500"),
    "503 as a page": (sends("<html>busy</html>", 503, "text/html"), False, "503"),
    "504": (fails(504), True, "504"),
    "cut before the reply": (cut(), True, "cut"),
    "cut in the body": (cut(after=40), True, "cut"),
    "half of a JSON": (TRUNCATED, True, "can't be read"),
    "a page called JSON": (sends("<html>hello</html>"), True, "can't be read"),
    "a page": (sends("<html>hello</html>", kind="text/html"), True, "no chat completion"),
    "no choices": (says("1", choices=[]), True, "no choices"),
    "null choices": (NULL, True, "no choices"),
    "another shape": (says("1", choices=[7]), True, "can't be read"),
}

faults = pytest.mark.parametrize(("fault", "paid", "words"), FAULTS.values(), ids=FAULTS)


@faults
def test_a_fault_that_passes_is_a_second_attempt(fault, paid, words):
    meter = Notebook()
    with FaultyServer([fault], says("2")) as server:
        logps = ask(make_api(server.url), meter)
    assert logps.tolist() == [[-math.inf, 0.0]]
    assert meter.told == ["paid" if paid else "failed", "answered"]
    assert words in meter.reasons[0]
    assert meter.tokens == [(7, 1)]
    assert len(server.requests) == 2
    assert server.requests[0] == server.requests[1]


@faults
def test_a_fault_that_stays_ends_the_run_after_its_own_number_of_attempts(fault, paid, words):
    """An outage is no label."""
    meter = Notebook()
    with FaultyServer(otherwise=fault) as server:
        api = make_api(server.url, max_retries=3, max_paid_retries=1)
        with pytest.raises(UserError, match=r"got none in \d attempts, nor to any other question meanwhile") as error:
            ask(api, meter)
    assert words in str(error.value)
    assert meter.told == ["paid"] * 2 if paid else ["failed"] * 4
    assert meter.open == {}
    assert meter.known == {}


@pytest.mark.parametrize(("fault", "paid"), [(fails(500), "failed"), (cut(), "paid")])
def test_one_question_without_an_answer_has_no_verdict_and_the_others_have(fault, paid):
    meter, answered = Notebook(), threading.Event()

    def answer(body):
        if body["messages"][0]["content"] == "bad":
            return lambda handler: (answered.wait(20), fault(handler))
        return lambda handler: (says("1")(handler), answered.set())

    with FaultyServer(answer=answer) as server:
        api = make_api(server.url, max_retries=2, max_paid_retries=2)
        with pytest.warns(UserWarning, match="expected an answer to every question, but 1 got none"):
            logps = ask(api, meter, "bad", "good")
    assert logps.isnan().tolist() == [[True, True], [False, False]]
    assert logps[1].tolist() == [0.0, -math.inf]
    assert api.unanswered == 1
    assert sorted(meter.told) == sorted([paid] * 3 + ["answered"])


def test_a_slow_answer_is_given_up_and_may_have_been_paid():
    meter = Notebook()
    with FaultyServer([slow], says("2")) as server:
        logps = ask(make_api(server.url, timeout=0.4), meter)
    assert logps.tolist() == [[-math.inf, 0.0]]
    assert meter.told == ["paid", "answered"]
    assert meter.reasons == ["no answer within 0.4 s"]


def test_an_answer_that_never_ends_is_given_up_too():
    """The limit is on the whole call, not on the silence between two bytes."""

    def drips(handler):
        handler.start(200, {"Content-Type": "application/json", "Content-Length": "1000"})
        with contextlib.suppress(OSError):
            while not handler.server.over.wait(0.05):
                handler.wfile.write(b" ")
                handler.wfile.flush()

    meter = Notebook()
    with FaultyServer([drips], says("2")) as server:
        ask(make_api(server.url, timeout=0.4), meter)
    assert meter.told == ["paid", "answered"]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_a_server_that_is_gone_for_a_while_is_waited_for_and_costs_nothing():
    port, meter = free_port(), Notebook()
    api = make_api(f"http://127.0.0.1:{port}/v1", max_retries=60, max_paid_retries=0)
    api.patience = replace(api.patience, first_pause=0.05)
    with contextlib.ExitStack() as stack:
        timer = threading.Timer(0.2, lambda: stack.enter_context(FaultyServer(port=port)))
        timer.start()
        logps = ask(api, meter)
        timer.join()
    assert logps.tolist() == [[0.0, -math.inf]]
    assert meter.told == ["failed"] * (len(meter.told) - 1) + ["answered"]
    assert len(meter.told) > 1
    assert "no connection" in meter.reasons[0]


NO = {
    400: "does not take what it is asked of model 'm'",
    401: "wants a key for model 'm'",
    403: "wants a key for model 'm'",
    404: "has no model 'm', or no chat completions at that address",
    422: "change model, readout",
}


@pytest.mark.parametrize("status", NO)
def test_a_mistake_ends_the_run_at_once_and_says_what_to_do(status):
    meter = Notebook()
    with FaultyServer(otherwise=fails(status)) as server, pytest.raises(UserError, match=NO[status]) as error:
        ask(make_api(server.url), meter)
    assert "as told" in str(error.value)
    assert meter.told == ["failed"]


def test_after_a_mistake_nothing_more_is_sent():
    meter = Notebook()
    with FaultyServer(otherwise=fails(401)) as server, pytest.raises(UserError):
        ask(make_api(server.url, concurrency=1), meter, *"abcdef")
    assert len(server.requests) == 1


def test_what_is_under_way_when_another_one_fails_is_waited_for_and_kept():
    meter, refused = Notebook(), threading.Event()

    def answer(body):
        if body["messages"][0]["content"] == "a":
            return lambda handler: (fails(404)(handler), refused.set())
        return lambda handler: (refused.wait(20), time.sleep(0.1), says("1")(handler))

    with FaultyServer(answer=answer) as server, pytest.raises(UserError, match="404"):
        ask(make_api(server.url, concurrency=2), meter, *"abc")
    assert meter.told == ["failed", "answered"]
    assert len(meter.known) == 1


@pytest.mark.parametrize("code", ["context_length_exceeded", "content_filter"])
def test_what_a_model_will_not_read_has_no_verdict(code):
    meter = Notebook()
    with FaultyServer([fails(400, code=code)]) as server, pytest.warns(UserWarning, match=code):
        logps = ask(make_api(server.url, concurrency=1), meter, "a", "b")
    assert logps.isnan().any(-1).tolist() == [True, False]
    assert meter.told == ["failed", "answered"]


# When to ask again


def test_a_wait_that_the_server_asks_for_is_kept():
    with FaultyServer([fails(429, {"Retry-After": "0.3"})]) as server:
        start = time.perf_counter()
        ask(make_api(server.url), Notebook())
        assert time.perf_counter() - start >= 0.3


def test_a_wait_that_is_too_long_ends_the_run_in_words():
    meter = Notebook()
    with FaultyServer([fails(429, {"Retry-After": "3600"})]) as server:
        with pytest.raises(UserError, match=r"within max_wait = 60 s, but it asks to wait 3600 s .*as told.*start the same command again"):
            ask(make_api(server.url), meter)
        assert len(server.requests) == 1
    assert meter.told == ["failed"]


def test_when_a_server_says_to_come_back():
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 28 < retry_after({"retry-after": date}) <= 30
    assert retry_after({"retry-after": email.utils.formatdate(time.time() - 30, usegmt=True)}) == 0
    assert retry_after({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert retry_after({}) is None


def test_pauses_grow_are_shortened_at_random_and_are_never_shorter_than_asked():
    patience = Patience(timeout=1, max_retries=8, max_paid_retries=2, max_wait=60)
    for failures, longest in ((1, 0.5), (2, 1.0), (4, 4.0), (40, 30.0)):
        pauses = [patience.pause(failures, None) for _ in range(50)]
        assert longest / 2 <= min(pauses) < max(pauses) <= longest
    assert all(2.0 < patience.pause(5, 2.0) <= 2.5 for _ in range(50))


# What the meter is told


def test_an_interrupted_call_may_have_been_paid():
    meter = Notebook()

    async def interrupted():
        api = make_api(server.url)
        with metered(meter):
            task = asyncio.ensure_future(api._ask([[{"role": "user", "content": "a"}]], ("1", "2")))
            while not server.requests:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with FaultyServer(otherwise=slow) as server:
        asyncio.run(interrupted())
    assert meter.told == ["paid"]
    assert meter.open == {}


def test_what_is_known_is_not_asked_and_the_same_to_the_bit():
    meter = Notebook()
    table = {"1": math.log(0.3), " 1": math.log(0.1), "2": math.log(0.45), "x": -9.3}
    with FaultyServer(otherwise=says("2", table)) as server:
        api = make_api(server.url, readout="logprobs")
        first = ask(api, meter, "a", "b")
        sent = len(server.requests)
        again = ask(make_api(server.url, readout="logprobs"), meter, "b", "a", "c")
    assert (sent, len(server.requests)) == (3, 4), "a probe, a and b; then c"
    assert again[:2].tolist() == first.flip(0).tolist()
    assert first[0].exp().tolist() == pytest.approx([0.4, 0.45])


def test_a_question_says_all_that_its_answer_depends_on():
    settings = [{}, {"temperature": 1.0}, {"max_tokens": 99}, {"extra_body": {"top_k": 1}}, {"readout": "logprobs"}]
    with FaultyServer(otherwise=says("2", {"1": -1.0, "2": -1.0})) as server:
        meter = Notebook()
        for options in settings:
            ask(make_api(server.url, **options), meter, "a")
        ask(make_api(server.url, timeout=5, concurrency=3, max_retries=1), meter, "a")
        assert len(meter.known) == len(settings) + 1, "and a probe"
        other = make_api(server.url)
        other.model = "another m"
        ask(other, meter, "a", "a")
    assert len(meter.known) == len(settings) + 3, "two draws of one question"
    assert len(server.requests) == len(meter.known)


@pytest.mark.filterwarnings("ignore:What .* costs is not known")  # nobody gave a price
def test_a_run_that_lost_its_server_goes_on_where_it_was(tmp_path):
    """No label that came is asked for again, and no answer either, for the run's ledger has it."""
    (tmp_path / "scoring.yaml").write_text(SCORING, encoding="utf-8")
    model, answered, ports = write_tiny(tmp_path / "model"), [], []

    def answer(body, limit):
        if len(answered) >= limit:
            return fails(500)
        answered.append(body["messages"][0]["content"])
        return says(str(1 + len(answered[-1]) % 10))

    def run(limit, port=0):
        with FaultyServer(answer=lambda body: answer(body, limit), port=port) as server:
            ports.append(server.server_address[1])
            judge = ScoringJudge(make_api(server.url, concurrency=1, max_retries=1), str(tmp_path / "scoring.yaml"))
            return fit(tmp_path / "run", model, annotator=judge, chunk_prompts=2, trainer={"max_epochs": 1})

    with pytest.raises(UserError, match="got none in 2 attempts"):
        run(limit=20)
    first = labels_of(tmp_path)
    assert 2 <= len(first) < 8
    assert all(score is not None for row in first for score in row["scores"]), "an outage is no label"
    result = run(limit=1000, port=ports[0])
    assert labels_of(tmp_path)[: len(first)] == first
    assert len(labels_of(tmp_path)) == 8
    assert len(answered) == len(set(answered))
    assert result.recorder.metrics[-1]["labels/used"] == 32


def labels_of(folder):
    lines = (folder / "run" / "journal" / "labels-0.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_no_more_calls_at_once_than_allowed_and_as_many():
    meeting = threading.Barrier(3)

    def answer(body):
        return lambda handler: (meeting.wait(20), says("1")(handler))

    with FaultyServer(answer=answer) as server:
        ask(make_api(server.url, concurrency=3), Notebook(), *"abcdefghi")
    assert server.most_at_once == 3


@pytest.mark.parametrize(("ranks", "shares"), [(1, [5]), (2, [3, 2]), (8, [1] * 8)])
def test_ranks_share_the_calls_at_once(ranks, shares, monkeypatch):
    monkeypatch.setattr("lit_align.annotators.chat_api.world_size", lambda: ranks)
    api, found = make_api("http://localhost/v1", concurrency=5), []
    for rank in range(ranks):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        found.append(api._share_of_concurrency())
    assert found == shares


def test_the_scripted_answers_are_what_the_client_reads():
    assert completion("7", {"7": -0.5})["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["logprob"] == -0.5
