"""The benchmark beside TRL, from the agreement on TRL's rollout to the line of the table, with a tiny random model."""

import warnings
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from benchmarks.vs_trl import rows
from benchmarks.vs_trl.agreement import Disagreement, check, moved
from benchmarks.vs_trl.case import ALGORITHMS, BETA, ONLINE, Algorithm, published
from benchmarks.vs_trl.measure import measure
from benchmarks.vs_trl.plan import Planned
from benchmarks.vs_trl.world import make_world
from tests.tiny import write_tiny

TEXTS = ["abc def ghij ab cd" * 6, "jiji hg fed cab" * 7, "a bc def ghij ihgf" * 6, "dead bead fade" * 8]

pytestmark = [pytest.mark.peer, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def theirs(trl: Any) -> Any:
    return import_module("benchmarks.vs_trl.theirs")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"), context=512)


@pytest.mark.parametrize(("algorithm", "forced"), [*((a, False) for a in ALGORITHMS), *((a, True) for a in ONLINE)])
def test_both_loops_do_the_same_and_take_two_turns(algorithm: Algorithm, forced: bool, theirs: Any, tiny: str) -> None:
    case = replace(published(algorithm, tiny, 1), prompts=4, prompt_tokens=12, response_tokens=16, forced=forced)
    with warnings.catch_warnings():
        result = measure(Planned(case, steps=2, memory=False), TEXTS, limit=60)
    assert result["n"] == 2
    assert max(result["agreement"].values()) < 1e-4
    assert ("advantages" in result["agreement"]) == (algorithm in ("rloo", "grpo"))
    assert result["ratio"]["cpu"]["low"] > 0
    trl, ours = (result["sides"][side]["tokens"] for side in ("trl", "ours"))
    if not case.online:
        assert trl == ours, "the same rows"
    if forced:
        assert trl == ours == 4 * case.k * 16
    assert rows.line(result)[3] == "2"
    assert result["parts"].keys() == result["loop"].keys() == {"ours"}, "TRL's steps are timed as a whole"


def test_another_beta_gets_no_ratio(theirs: Any, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = replace(published("grpo", tiny, 1), prompts=4, prompt_tokens=12, response_tokens=16)
    world = make_world(case, TEXTS)
    peer = theirs.Peer(case, world, tmp_path / "theirs", 1, model=moved(theirs.load(world)))
    monkeypatch.setitem(BETA, "grpo", 0.05)
    with pytest.raises(Disagreement, match="No ratio"):
        check(case, world, tmp_path / "ours", peer)
