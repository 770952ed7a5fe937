"""The worlds of the tables: fixed pairs from them, and where nothing has been prepared."""

import json
from pathlib import Path

import pytest

from benchmarks.worlds import World
from lit_align.types import Prompt, UserError
from tests.tiny import PROMPTS, vowels, write_prompts, write_tiny


@pytest.fixture
def world(tmp_path: Path) -> World:
    policy = tmp_path / "policy"
    write_tiny(policy, context=80)
    prompts = write_prompts(tmp_path / "prompts.jsonl")
    return World(config="", prompts=prompts, prepare="make prompts", policy=lambda: policy, proxy=lambda: vowels)


def test_pairs_are_ordered_by_the_proxy_and_a_prompt_read_again_is_answered_anew(world: World, tmp_path: Path) -> None:
    world.check()
    world.write_pairs(tmp_path / "new" / "pairs.jsonl", 2 * len(PROMPTS))
    rows = [json.loads(line) for line in (tmp_path / "new" / "pairs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(PROMPTS) < len(rows) <= 2 * len(PROMPTS)
    for row in rows:
        better, worse = vowels(Prompt(0, row["prompt"]), [row["chosen"], row["rejected"]])
        assert better > worse
    assert {row["prompt"] for row in rows} <= set(PROMPTS)
    assert len({(row["prompt"], row["chosen"]) for row in rows}) == len(rows)


def test_what_is_missing_is_said(world: World, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no prompts in nowhere\.jsonl.*run `make prompts`"):
        world._replace(prompts="nowhere.jsonl").check()
    with pytest.raises(UserError, match="or no policy in"):
        world._replace(policy=lambda: tmp_path / "none").check()
