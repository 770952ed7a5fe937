"""Which prompts a run reads: all that fit, each once per reading, in an order that only the seed decides."""

import warnings
from collections import Counter

import pytest
import torch

from lit_align.data import ListPrompts
from lit_align.data.pool import LongPrompts, PromptPool
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, UserError
from tests.tiny import write_tiny

TEXTS = ["a", "bcd", "efghij", "ab cd ef", "gh", "ij a"]  # 1, 3, 6, 8, 2, 4 tokens


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CausalPolicy:
    return CausalPolicy(write_tiny(tmp_path_factory.mktemp("tiny")))


def pool_of(policy: CausalPolicy, limit: int | None = None, long: LongPrompts = "drop", seed: int = 0, texts=TEXTS) -> PromptPool:
    return PromptPool(ListPrompts(list(texts)), policy, limit, long, seed)


def texts(prompts: list[EncodedPrompt]) -> list[str]:
    return [str(p.prompt.content) for p in prompts]


def test_without_a_limit_everything_is_read_quietly(policy: CausalPolicy) -> None:
    pool = pool_of(policy)
    assert (len(pool), pool.dropped) == (6, 0)
    for encoded, text in zip(pool.in_order(), TEXTS, strict=True):
        assert encoded.tokens == tuple(policy.encode(encoded.prompt))
        assert policy.decode(encoded.tokens) == text


@pytest.mark.parametrize(("limit", "kept"), [(8, 6), (7, 5), (4, 4), (3, 3), (1, 1)])
def test_longer_prompts_are_dropped_counted_and_told(limit: int, kept: int, policy: CausalPolicy) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pool = pool_of(policy, limit)
    assert (len(pool), pool.dropped) == (kept, 6 - kept)
    said = [str(warning.message) for warning in caught]
    share = {5: "16.7%", 4: "33.3%", 3: "50.0%", 1: "83.3%"}
    expected = [] if kept == 6 else [f"{6 - kept} of 6 prompts ({share[kept]}) are longer than {limit} tokens and dropped."]
    assert said == expected
    fitting = [text for text in TEXTS if len(text) <= limit]
    assert texts(pool.in_order()) == fitting
    assert Counter(texts(pool.take(0, 2 * kept))) == dict.fromkeys(fitting, 2)


def test_longer_prompts_lose_their_beginning(policy: CausalPolicy) -> None:
    pool = pool_of(policy, 3, "truncate_left")
    assert (len(pool), pool.dropped) == (6, 0)
    found = pool.in_order()
    assert [policy.decode(p.tokens) for p in found] == ["a", "bcd", "hij", " ef", "gh", "j a"]
    assert texts(found) == TEXTS, "the annotator sees the whole prompt"
    whole = {p.prompt.id: p for p in pool_of(policy).in_order()}
    assert all(p.tokens == whole[p.prompt.id].tokens[-3:] for p in pool.take(0, 12))


def test_longer_prompts_are_refused_with_the_worst_one_named(policy: CausalPolicy) -> None:
    with pytest.raises(UserError, match=r"2 of 6 prompts are longer than 5 tokens; the longest, row 3, has 8\. Set `long_prompts` to drop"):
        pool_of(policy, 5, "refuse")
    assert len(pool_of(policy, 8, "refuse")) == 6


def test_nothing_left_is_an_error(policy: CausalPolicy) -> None:
    with pytest.raises(UserError, match=r"All 2 prompts are longer than 2 tokens\. Set `long_prompts: truncate_left`"):
        pool_of(policy, 2, texts=["abc", "defg"])


@pytest.mark.parametrize("limit", [0, -5])
@pytest.mark.parametrize("long", ["drop", "truncate_left", "refuse"])
def test_no_room_is_an_error(limit: int, long: LongPrompts, policy: CausalPolicy) -> None:
    with pytest.raises(UserError, match=rf"No room for a prompt: {limit} tokens are left of the context\. Lower the sampler"):
        pool_of(policy, limit, long)


def test_every_reading_has_every_prompt_once_in_a_new_order(policy: CausalPolicy) -> None:
    pool = pool_of(policy)
    readings = [texts(pool.take(6 * turn, 6)) for turn in range(5)]
    assert all(sorted(reading) == sorted(TEXTS) for reading in readings)
    assert len({tuple(reading) for reading in [TEXTS, *readings]}) > 3


def test_the_order_is_the_seeds_and_of_nothing_else(policy: CausalPolicy) -> None:
    torch.manual_seed(1)
    first = texts(pool_of(policy, seed=3).take(0, 30))
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert texts(pool_of(policy, seed=3).take(0, 30)) == first
    assert torch.equal(torch.get_rng_state(), before)
    assert texts(pool_of(policy, seed=4).take(0, 30)) != first


@pytest.mark.parametrize("size", [1, 4, 5, 6, 7, 13])
def test_pieces_of_any_size_are_pieces_of_one_endless_reading(size: int, policy: CausalPolicy) -> None:
    pool = pool_of(policy)
    endless = [text for turn in range(10) for text in texts(pool.take(6 * turn, 6))]
    pieces = [text for start in range(0, 60 - size, size) for text in texts(pool.take(start, size))]
    assert pieces == endless[: len(pieces)]


def test_occurrences_count_the_repeats_of_one_take(policy: CausalPolicy) -> None:
    taken = pool_of(policy).take(4, 15)  # parts of four readings
    seen: Counter[int] = Counter()
    for prompt in taken:
        assert prompt.occurrence == seen[prompt.prompt.id]
        seen[prompt.prompt.id] += 1
    assert max(seen.values()) >= 3
    assert {p.occurrence for p in pool_of(policy).take(6, 6)} == {0}, "another take begins again"
    assert {p.occurrence for p in pool_of(policy).in_order()} == {0}


def test_a_source_shorter_than_a_rollout_is_read_again(policy: CausalPolicy) -> None:
    taken = pool_of(policy, texts=["ab"]).take(7, 4)
    assert [(p.prompt.content, p.occurrence) for p in taken] == [("ab", 0), ("ab", 1), ("ab", 2), ("ab", 3)]
