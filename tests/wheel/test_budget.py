"""A run ends where its budget does, before anything is asked that can't be used, and goes on as if it had not."""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_align.data import Budget, ListPrompts, Price
from lit_align.data.budget import Use
from lit_align.data.ledger import Ledger
from lit_align.metering import current_meter
from lit_align.types import Prompt, UserError
from tests.tiny import make_dar, make_data, make_trainer, vowels
from tests.wheel.harness import Fit, Killed, Scores, differing, fit
from tests.wheel.test_mixed import run as mixture

PRICES = {"judge": Price(prompt=100_000.0, completion=500_000.0)}  # a call: 10 and 2 tokens, 2 of money
ROLLOUT = 32  # labels of one


def asks(prompt: Prompt, texts: Sequence[str], model: str = "judge") -> list[float]:
    """`vowels`, paid for per response: what was asked before is not asked again."""
    meter = current_meter()
    for text in texts:
        question = f"{prompt.content}|{text}"
        if meter.recall(question) is None:
            meter.answered(meter.sent(question, model), "1", 10, 2, 0.25)
    return vowels(prompt, texts)


def run(root: Path, model: str, epochs: int = 4, **options: Any) -> Fit:
    options = {"annotator": Scores(asks), "prices": PRICES} | options
    return fit(root, model, trainer={"max_epochs": epochs}, **options)


@pytest.fixture(scope="module")
def whole(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Fit:
    return run(tmp_path_factory.mktemp("whole") / "run", tiny)


def price_of(result: Fit, rollouts: int) -> float:
    return sum(metrics["cost/price"] for metrics in result.recorder.metrics[:rollouts])


def test_what_a_run_costs(whole: Fit) -> None:
    metrics, folder = whole.recorder.metrics, Path(whole.trainer.default_root_dir) / "ledger"
    for rollout in metrics:
        assert rollout["cost/calls"] + rollout["cost/hits"] == ROLLOUT, "each response is a call, or known"
        assert rollout["cost/price"] == pytest.approx(2 * rollout["cost/calls"])
        assert rollout["cost/prompt_tokens"] == 10 * rollout["cost/calls"]
        assert rollout["cost/seconds_per_answer"] == pytest.approx(0.25)
        assert rollout["cost/failures"] == rollout["cost/maybe_paid"] == rollout["cost/reused_labels"] == 0
    assert sum(rollout["cost/hits"] for rollout in metrics) > 0
    lines = [json.loads(line) for line in (folder / "cost.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["rollout"], line["labels_used"]) for line in lines] == [(i, 32 * (i + 1)) for i in range(4)]
    assert [line["price"] for line in lines] == pytest.approx([rollout["cost/price"] for rollout in metrics])


def test_a_free_annotator_has_no_costs(tiny: str, root: Path) -> None:
    result = run(root, tiny, 1, annotator=Scores())
    assert not any(name.startswith("cost/") for name in result.recorder.metrics[0])
    assert not (root / "ledger").exists()


@pytest.mark.parametrize("kind", ["labels", "tokens", "money"])
def test_it_ends_before_the_rollout_and_goes_on_to_the_bit(kind: str, whole: Fit, tiny: str, root: Path, caplog: Any) -> None:
    """Room for two rollouts and most of a third."""
    spent = price_of(whole, 2)
    budget = {"labels": Budget(labels=3 * ROLLOUT - 1), "tokens": Budget(tokens=int(spent * 6 * 1.4)), "money": Budget(money=spent * 1.4)}
    annotator = Scores(asks)
    with caplog.at_level(logging.INFO):
        first = run(root, tiny, annotator=annotator, budget=budget[kind])
    assert f"Rollout 2 is not started: budget.{kind} is " in caplog.text
    assert len(annotator.asked) == 16
    assert len(first.recorder.rollouts) == 2
    assert first.trainer.state.finished
    assert first.trainer.current_epoch == 2
    assert first.recorder.losses == whole.recorder.losses[:4], "the rollout before is trained on"
    first.trainer.save_checkpoint(root / "end.ckpt")
    with pytest.raises(UserError, match=rf"Rollout 2 is not started: budget\.{kind} is .*Raise data\.init_args\.budget"):
        run(root, tiny, annotator=annotator, budget=budget[kind], ckpt_path=root / "end.ckpt")
    assert len(annotator.asked) == 16
    larger = Budget(labels=4 * ROLLOUT, tokens=10**6, money=1e6)
    rest = run(root, tiny, annotator=annotator, budget=larger, ckpt_path=root / "end.ckpt")
    assert differing(whole.state, rest.state) == []
    assert len(annotator.asked) == 32
    assert rest.recorder.metrics[-1]["cost/hits"] == whole.recorder.metrics[-1]["cost/hits"], "what was answered before the stop is known"


def test_a_budget_for_all_of_it_changes_nothing(whole: Fit, tiny: str, root: Path) -> None:
    assert differing(whole.state, run(root, tiny, budget=Budget(labels=4 * ROLLOUT)).state) == []


def test_a_rollout_that_was_killed_half_way_is_finished_within_the_same_budget(whole: Fit, tiny: str, root: Path) -> None:
    """What is in the journal is paid for already: it is not counted twice."""

    class Dies(Scores):
        def annotate(self, rollouts: Any) -> Any:
            if len(self.asked) == 12:
                raise Killed
            return super().annotate(rollouts)

    budget = Budget(labels=2 * ROLLOUT)
    with pytest.raises(Killed):
        run(root, tiny, annotator=Dies(asks), budget=budget, chunk_prompts=2)
    annotator = Scores(asks)
    result = run(root, tiny, 2, annotator=annotator, budget=budget, chunk_prompts=2)
    assert len(annotator.asked) == 4
    assert result.recorder.losses == whole.recorder.losses[:4]


def test_further_prompts_of_a_search_need_room_too(tiny: str, root: Path) -> None:
    """At most so many labels may be wanted: they are counted whether or not they turn out to be."""
    with pytest.raises(UserError, match=r"budget\.labels is 35, 0 are used, and 36 more are needed"):
        run(root, tiny, budget=Budget(labels=35), max_extra_prompts=1)
    assert len(run(root, tiny, budget=Budget(labels=36), max_extra_prompts=1).recorder.rollouts) == 1


def test_a_mixture_needs_room_for_the_rows_that_are_judged(tiny: str, root: Path) -> None:
    """To the label: as many as the routes send to the annotator."""
    used = [metrics["labels/used"] for metrics in mixture(root / "whole", tiny).recorder.metrics]
    assert 0 < used[-1] < 3 * 16 * 2, "not all rows are"
    for budget, rollouts in ((used[-1], 3), (used[-1] - 1, 2)):
        ended = mixture(root / str(rollouts), tiny, budget=Budget(labels=int(budget)))
        assert [metrics["labels/used"] for metrics in ended.recorder.metrics] == used[:rollouts]


def test_attempts_that_may_be_paid_for_have_their_place(tiny: str, root: Path) -> None:
    """As many as there were answers double what a label costs."""

    def unlucky(prompt: Prompt, texts: Sequence[str]) -> list[float]:
        for text in texts:
            current_meter().failed(current_meter().sent(f"{prompt.content}|{text}", "judge"), "time-out", 1.0, paid=True)
        return asks(prompt, texts)

    budget = Budget(money=3.5 * 2 * ROLLOUT)
    result = run(root, tiny, annotator=Scores(unlucky), budget=budget)
    assert len(result.recorder.rollouts) == 1
    assert result.recorder.metrics[0]["cost/price"] <= 2 * ROLLOUT, "what is certain"
    assert result.recorder.metrics[0]["cost/maybe_paid"] == result.recorder.metrics[0]["cost/failures"] == ROLLOUT


def test_money_needs_prices(tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match=r"budget\.money needs prices, and there are none\. Set data\.init_args\.prices"):
        run(root, tiny, budget=Budget(money=1.0), prices=None)
    with pytest.raises(UserError, match=r"budget\.money needs the price of 'dear', which is asked"):
        run(root, tiny, budget=Budget(money=1.0), annotator=Scores(lambda prompt, texts: asks(prompt, texts, "dear")))
    ledger = Ledger(root / "ledger", 0, 1, PRICES)
    assert ledger.spend().calls == 0, "nobody was asked"


def test_money_that_is_not_known_is_no_budget(tiny: str, root: Path) -> None:
    """A run that went without one, and asked a model that has no price."""
    with pytest.warns(UserWarning, match="What 'dear' costs is not known"):
        first = run(root, tiny, 1, annotator=Scores(lambda prompt, texts: asks(prompt, texts, "dear")))
    assert "cost/price" not in first.recorder.metrics[0]
    assert first.recorder.metrics[0]["cost/calls"] > 0
    with pytest.raises(UserError, match=r"budget\.money needs to know what was spent, but of \d+ calls .* no price"):
        run(root, tiny, budget=Budget(money=1e6))
    priced = run(root, tiny, 1, budget=Budget(money=1e6), prices=PRICES | {"dear": Price(prompt=0.0, completion=0.0)})
    assert priced.recorder.metrics[0]["cost/price"] == 0


def test_an_evaluation_is_in_the_ledger_too(tiny: str, root: Path) -> None:
    held_out = {"eval_prompts": ListPrompts(["a", "b"], name="held out"), "eval_annotator": Scores(asks)}
    fit(root, tiny, trainer={"max_epochs": 1, "check_val_every_n_epoch": 1}, prices=PRICES, **held_out)
    ledger = Ledger(root / "ledger", 0, 1, PRICES)
    assert ledger.spend().calls == 2
    assert ledger.spend(0).price == pytest.approx(4.0)
    ledger.close()


def test_an_evaluation_by_itself_has_a_ledger_of_its_own(tiny: str, root: Path, caplog: Any) -> None:
    data = make_data(eval_prompts=ListPrompts(["a", "b"], name="held out"), eval_annotator=Scores(asks), prices=PRICES)
    caplog.set_level(logging.INFO)
    for calls in ("2 calls;", "2 calls, 2 answers known already;"):
        make_trainer(root).validate(make_dar(tiny), data, verbose=False)
        assert f"Cost of all calls in {root / 'ledger' / 'evaluation'}: {calls} 20 tokens read, 4 written; price: 4.00." in caplog.text
    assert not [*(root / "ledger").glob("*.sqlite")], "a budget of this run counts them not"


@pytest.mark.parametrize("wrong", [{}, {"labels": 0}, {"tokens": -1}, {"money": math.nan}, {"labels": 5, "money": math.inf}])
def test_a_budget_limits_something_to_a_positive_number(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="budget should limit labels, tokens or money to a positive number"):
        Budget(**wrong)


@pytest.mark.parametrize(
    ("limit", "wanted", "enough"),
    [
        ({"labels": 100}, 50, True),
        ({"labels": 99}, 50, False),
        ({"tokens": 1000}, 50, True),
        ({"tokens": 999}, 50, False),
        ({"money": 10.0}, 50, True),
        ({"money": 9.99}, 50, False),
        ({"labels": 1, "tokens": 1, "money": 1.0}, 0, True),  # nothing is wanted
        ({"labels": 1000, "tokens": 1000, "money": 5.0}, 1, False),  # the tightest one counts
    ],
)
def test_the_next_rollout_is_priced_by_the_labels_so_far(limit: dict[str, Any], wanted: int, enough: bool) -> None:
    used = Use(labels=50, tokens=500, money=5.0)
    assert (Budget(**limit).shortage(used, wanted) is None) == enough
