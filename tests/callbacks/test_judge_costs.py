"""What a judge in a callback has cost: in the run's folder, and no part of what the run may spend on labels."""

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from callbacks import JudgeEvaluation
from lit_align.annotators import FunctionAnnotator
from lit_align.data import Budget, ListPrompts, Price
from tests.callbacks.doubles import fit
from tests.tiny import make_data
from tests.wheel.harness import Killed, Scores
from tests.wheel.test_budget import PRICES, asks

HELD_OUT = ListPrompts(["cab", "fig", "jade"])


def attempts(root: Path, owner: str = "judge") -> dict[int, int]:
    table = sqlite3.connect(root / "ledger" / owner / "calls-0.sqlite")
    found = dict(table.execute("SELECT rollout, COUNT(*) FROM attempts WHERE outcome = 'answered' GROUP BY rollout"))
    table.close()
    return found


def costs(curves: Any, name: str) -> dict[int, float]:
    return curves.get(f"cost/judge_{name}", {})


def test_its_calls_are_counted_by_themselves_and_asked_once(root: Path, model: str) -> None:
    evaluation = JudgeEvaluation(Scores(asks), HELD_OUT, every_n_rollouts=1)
    data = make_data(annotator=Scores(asks), prices=PRICES, budget=Budget(money=128.0))  # 2 rollouts of 32 labels
    _, curves = fit(root, model, [evaluation], data=data, max_epochs=2)
    calls = attempts(root)
    assert costs(curves, "calls") == {x: calls.get(x, 0) for x in (0, 1, 2)}
    assert calls[0] == 3, "both sides say the same: the second is known"
    assert costs(curves, "hits")[0] == 3
    assert costs(curves, "price") == {x: 2.0 * number for x, number in costs(curves, "calls").items()}
    lines = [json.loads(line) for line in (root / "ledger" / "judge" / "cost.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["rollout"], line["calls"]) for line in lines] == [*costs(curves, "calls").items()]
    labels = attempts(root, ".")
    assert {x: curves["cost/calls"][x] for x in labels} == labels, "labels that train, and no others"
    assert sum(labels.values()) * 2.0 + sum(calls.values()) * 2.0 > 128.0, "the budget would not have held both"


def test_after_a_kill_what_was_answered_is_known(root: Path, model: str) -> None:
    def dies(prompt: Any, texts: Any) -> list[float]:
        if prompt.content == "jade":
            raise Killed
        return asks(prompt, texts)

    data = make_data(prices=PRICES)
    with pytest.raises(Killed):
        fit(root, model, [JudgeEvaluation(Scores(dies), HELD_OUT, chunk_prompts=1)], data=data, max_epochs=1)
    assert attempts(root) == {0: 2}
    _, curves = fit(root, model, [JudgeEvaluation(Scores(asks), HELD_OUT, chunk_prompts=1)], data=make_data(prices=PRICES), max_epochs=1)
    assert attempts(root)[0] == costs(curves, "calls")[0] == 3
    assert costs(curves, "hits")[0] == 5


def test_it_may_have_prices_of_its_own(root: Path, model: str) -> None:
    with pytest.warns(UserWarning, match="What 'judge' costs is not known .* Set `prices` of JudgeEvaluation, money per million"):
        _, curves = fit(root / "none", model, [JudgeEvaluation(Scores(asks), HELD_OUT)], max_epochs=1)
    assert costs(curves, "calls")
    assert not costs(curves, "price")
    own = JudgeEvaluation(Scores(asks), HELD_OUT, prices={"judge": Price(prompt=0.0, completion=1e6)})
    _, curves = fit(root / "own", model, [own], data=make_data(prices=PRICES), max_epochs=1)
    assert costs(curves, "price")[0] == 6.0


def test_a_free_judge_leaves_no_ledger(root: Path, model: str) -> None:
    _, curves = fit(root, model, [JudgeEvaluation(FunctionAnnotator(lambda prompt, texts: [1.0] * len(texts)), HELD_OUT)], max_epochs=1)
    assert not any(name.startswith("cost/") for name in curves)
    assert not (root / "ledger").exists()
