"""What was asked, and what it has cost."""

import asyncio
import sqlite3
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.annotators import FunctionAnnotator
from lit_align.data.ledger import Ledger
from lit_align.data.spend import Price, Spend
from lit_align.metering import current_meter, metered
from lit_align.types import UserError
from tests.annotators.worlds import rollouts

PRICES = {"small": Price(prompt=2.0, completion=8.0), "large": Price(prompt=20.0, completion=80.0)}


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Any]:
    """A function that opens the ledger of a rank."""
    made: list[Ledger] = []

    def open_ledger(rank: int = 0, world_size: int = 1, **options: Any) -> Ledger:
        made.append(Ledger(tmp_path / "ledger", rank, world_size, **({"prices": PRICES} | options)))
        return made[-1]

    yield open_ledger
    for ledger in made:
        ledger.close()


def ask(ledger: Ledger, question: str, model: str = "small", answer: str = "1", read: int = 100, written: int = 10) -> None:
    ledger.answered(ledger.sent(question, model), answer, read, written, 0.5)


def test_an_answer_is_remembered_to_the_letter(opened: Any) -> None:
    ledger, answer = opened(), '{"logps": [-0.1234567890123456, null], "text": "\\u00e9\\n"}'
    assert ledger.recall("q") is None
    ask(ledger, "q", answer=answer)
    assert ledger.recall("q") == answer
    assert ledger.spend().hits == 1, "a miss is no hit"
    ledger.failed(ledger.sent("q", "small"), "asked by somebody else too", 0.1, paid=False)
    ledger.close()
    assert opened().recall("q") == answer


@pytest.mark.parametrize("other", ['{"draw": 1}', '{"draw": 0} ', '{"draw": 0, "temperature": 1}'])
def test_another_draw_or_setting_is_another_question(other: str, opened: Any) -> None:
    ledger = opened()
    ask(ledger, '{"draw": 0}')
    assert ledger.recall(other) is None


def test_it_adds_up(opened: Any) -> None:
    ledger = opened()
    ask(ledger, "a")
    ask(ledger, "b", read=300, written=30)
    ask(ledger, "c", "large", read=1000, written=0)
    ledger.failed(ledger.sent("d", "small"), "429", 0.1, paid=False)
    ledger.failed(ledger.sent("d", "small"), "time-out", 2.0, paid=True)
    ledger.sent("e", "large")
    spend = ledger.spend()
    assert (spend.calls, spend.failures, spend.maybe_paid, spend.answers, spend.unpriced) == (6, 2, 2, 3, 0)
    assert (spend.prompt_tokens, spend.completion_tokens) == (1400, 40)
    assert spend.seconds == pytest.approx(1.5 + 2.1)
    assert spend.price == pytest.approx((400 * 2 + 40 * 8 + 1000 * 20) / 1e6)
    assert spend.maybe_tokens == pytest.approx(440 / 2 + 1000), "an average answered call of its model"
    assert spend.tokens == pytest.approx(1440 + 1220)
    assert spend.money == pytest.approx((1120 * 1.5 + 20000 * 2) / 1e6)
    assert spend.metrics()["cost/price"] == spend.price


def test_of_each_rollout(opened: Any) -> None:
    ledger = opened()
    for rollout, count in ((0, 2), (1, 3)):
        ledger.rollout = rollout
        for i in range(count):
            ask(ledger, f"{rollout}: {i}")
        ledger.recall("0: 0")
        ledger.reused(4)
    attempt = ledger.sent("late", "small")
    ledger.rollout = 2
    ledger.answered(attempt, "1", 5, 5, 0.1)
    spends = [ledger.spend(rollout) for rollout in range(3)]
    assert [spend.calls for spend in spends] == [2, 4, 0], "a late answer belongs to its question"
    assert [spend.hits for spend in spends] == [1, 1, 0]
    assert [spend.reused_labels for spend in spends] == [4, 4, 0]
    assert sum(spends, Spend()) == ledger.spend()


def test_counts_are_exact_under_threads(opened: Any) -> None:
    ledger, each = opened(), 40

    def work(thread: int) -> int:
        for i in range(each):
            attempt = ledger.sent(f"{thread}: {i}", "small")
            if i % 4:
                ledger.answered(attempt, f"{thread}/{i}", thread, 1, 0.1)
            else:
                ledger.failed(attempt, "cut", 0.1, paid=i % 8 == 0)
        return sum(ledger.recall(f"{thread}: {i}") == f"{thread}/{i}" for i in range(each))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(8))) == [30] * 8
    spend = ledger.spend()
    assert (spend.calls, spend.answers, spend.failures, spend.maybe_paid, spend.hits) == (320, 240, 80, 40, 240)
    assert spend.prompt_tokens == 30 * sum(range(8))


def test_an_attempt_is_on_disk_before_it_is_sent(opened: Any, tmp_path: Path) -> None:
    ledger = opened()
    assert not (tmp_path / "ledger").exists(), "who asks nothing leaves no file"
    attempt = ledger.sent("q", "small")
    other = sqlite3.connect(tmp_path / "ledger" / "calls-0.sqlite")
    columns = "SELECT attempt, model, outcome, answer, prompt_tokens FROM attempts"
    assert other.execute(columns).fetchall() == [(attempt, "small", None, None, 0)]
    ledger.answered(attempt, "1", 7, 1, 0.1)
    assert other.execute(columns).fetchall() == [(attempt, "small", "answered", "1", 7)]
    other.close()


def test_the_number_of_ranks_may_change(opened: Any) -> None:
    for rank in range(3):
        before = opened(rank, 3)
        ask(before, f"of {rank}", answer=f"to {rank}", read=10**rank)
        before.close()
    two = [opened(rank, 2) for rank in range(2)]
    assert [[ledger.recall(f"of {rank}") for rank in range(3)] for ledger in two] == [["to 0", "to 1", "to 2"]] * 2
    assert [ledger.spend().prompt_tokens for ledger in two] == [1 + 100, 10], "the first rank counts what the third has left"
    assert sum((ledger.spend() for ledger in two), Spend()).calls == 3
    assert [ledger.spend(0).prompt_tokens for ledger in two] == [1, 10]
    ask(two[1], "new")
    assert sum((ledger.spend() for ledger in (opened(rank, 3) for rank in range(3))), Spend()).calls == 4


def test_a_price_that_is_not_known_is_not_zero(opened: Any) -> None:
    ledger = opened()
    ask(ledger, "a")
    with pytest.warns(UserWarning, match=r"What 'huge' costs is not known \(there are prices of 'small', 'large'\).*prices"):
        ask(ledger, "b", "huge")
    ask(ledger, "c", "huge")  # said once
    spend = ledger.spend()
    assert spend.unpriced == 2
    assert spend.money != spend.money, "NaN"
    assert "cost/price" not in spend.metrics()
    assert spend.metrics()["cost/prompt_tokens"] == 300


def test_where_money_matters_nobody_without_a_price_is_asked(opened: Any) -> None:
    ledger = opened(money_matters=True, prices={"free": Price(0.0, 0.0)})
    ask(ledger, "a", "free")
    for _ in range(2):
        with pytest.raises(UserError, match=r"budget\.money needs the price of 'huge'.*there are prices of 'free'.*\{huge: \{prompt: "):
            ledger.sent("b", "huge")
    spend = ledger.spend()
    assert (spend.calls, spend.money) == (1, 0.0)


@pytest.mark.parametrize("price", [(-1.0, 1.0), (1.0, float("nan")), (float("inf"), 1.0)])
def test_no_price_is_below_nothing(price: tuple[float, float]) -> None:
    with pytest.raises(UserError, match="at least 0 and finite"):
        Price(*price)


def test_an_outcome_of_nothing_is_an_error(opened: Any) -> None:
    with pytest.raises(ValueError, match="no attempt number 3"):
        opened().answered(3, "1", 1, 1, 0.1)


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, opened: Any) -> None:
    (tmp_path / "ledger").mkdir()
    (tmp_path / "ledger" / "calls-0.sqlite").write_text("what is this? " * 100, encoding="utf-8")
    with pytest.raises(UserError, match="file is not a database"):
        opened()


def test_an_async_function_tells_the_meter_of_its_call(opened: Any) -> None:
    """Also where the event loop was made under another one."""

    async def score(prompt: object, texts: list[str]) -> list[float]:
        await asyncio.sleep(0)
        meter = current_meter()
        meter.answered(meter.sent(str(texts), "small"), "1", 1, 1, 0.1)
        return [1.0] * len(texts)

    annotator, ledger = FunctionAnnotator(score), opened()
    annotator.annotate(rollouts([["a", "b"]]))
    with metered(ledger):
        annotator.annotate(rollouts([["a", "b"], ["c", "d"]]))
    annotator.close()
    assert ledger.spend().calls == 2


def test_the_sum_over_one_rank_is_its_own() -> None:
    spend = Spend(calls=3, price=1e-9, maybe_price=1e9, hits=0.1)
    assert spend.everyones(torch.device("cpu")) == spend
