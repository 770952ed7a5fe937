"""Readings go on where they stopped: every prompt in its turn, shares kept, long prompts counted on the way."""

import itertools
import json
import warnings
from collections import Counter
from collections.abc import Iterator

import pytest

from lit_align.data import ListPrompts, MixedPrompts
from lit_align.data.pool import LongPrompts, PromptEncoder, PromptPool
from lit_align.data.readers import PromptReader, reader_of
from lit_align.data.sources import prompt_id
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Prompt, PromptSource, PromptStream, UserError
from tests.tiny import write_tiny

LETTERS = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]


class Stream(PromptStream):
    """A stream that remembers from where it was read."""

    def __init__(self, texts: list[str], shuffle_buffer: int = 0, max_prompts: int | None = None, name: str = "stream") -> None:
        self.texts, self.shuffle_buffer, self.max_prompts, self.name = texts, shuffle_buffer, max_prompts, name
        self.starts: list[int] = []

    def read(self, start: int = 0) -> Iterator[Prompt]:
        self.starts.append(start)
        rows = list(enumerate(self.texts))[start : self.max_prompts]
        return (Prompt(prompt_id(self.name, row), text) for row, text in rows)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> CausalPolicy:
    return CausalPolicy(write_tiny(tmp_path_factory.mktemp("tiny")))


@pytest.fixture
def read(policy: CausalPolicy):
    def make(source: PromptSource, limit: int | None = None, long: LongPrompts = "drop", seed: int = 0) -> PromptReader:
        return reader_of(source, PromptEncoder(policy, limit, long), seed)

    return make


def texts(prompts: list[EncodedPrompt]) -> list[str]:
    return [str(p.prompt.content) for p in prompts]


SOURCES = {
    "indexed": lambda: ListPrompts(LETTERS),
    "stream": lambda: Stream(LETTERS),
    "shuffled stream": lambda: Stream(LETTERS, 4),
    "mixture": lambda: MixedPrompts([ListPrompts(LETTERS), Stream(["aa", "bb", "cc"], 2)], [2, 1]),
}


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
@pytest.mark.parametrize("stop", range(9))
def test_a_reading_goes_on_where_it_stopped(make, stop, read):
    """From wherever its place was kept, in another process as in the same one, that file read on in the meantime or not."""
    whole, stopped = read(make()), read(make())
    expected = [whole.take(3) for _ in range(12)]
    assert [stopped.take(3) for _ in range(stop)] == expected[:stop]
    place = json.loads(json.dumps(stopped.state_dict()))  # plain data
    stopped.take(3)
    resumed = read(make())
    for reader in (resumed, stopped):
        reader.load_state_dict(place)
        assert [reader.take(3) for _ in range(stop, 12)] == expected[stop:]


@pytest.mark.parametrize("make", SOURCES.values(), ids=SOURCES)
def test_a_place_is_a_copy(make, read):
    reader = read(make())
    reader.take(2)
    place = reader.state_dict()
    kept = json.dumps(place)
    reader.take(5)
    assert json.dumps(place) == kept
    reader.load_state_dict(place)
    reader.take(5)
    assert json.dumps(place) == kept


def test_an_indexed_source_is_read_as_its_pool(policy, read):
    source = ListPrompts(LETTERS)
    pool = PromptPool(source, policy, None, "drop", 3)
    reader = read(source, seed=3)
    assert reader.take(7) + reader.take(7) == pool.take(0, 7) + pool.take(7, 7)
    assert reader.in_order() == pool.in_order()
    assert reader.metrics() == {}


# Streams


def test_a_stream_is_read_in_order_and_again(read):
    reader = read(Stream(LETTERS))
    assert texts(reader.take(25)) == (LETTERS * 3)[:25]
    assert reader.metrics() == {"prompts/dropped": 0, "prompts/readings": 2}


def test_a_prompt_that_comes_again_in_a_take_is_the_next_occurrence(read):
    taken = read(Stream(["a", "b"])).take(5)
    assert [(p.prompt.content, p.occurrence) for p in taken] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2)]


@pytest.mark.parametrize("buffer", [2, 4, 7, 10, 99])
def test_a_buffer_shuffles_its_block_and_nothing_else(buffer, read):
    reader = read(Stream(LETTERS, buffer))
    readings = [texts(reader.take(10)) for _ in range(6)]
    for reading in readings:
        for start in range(0, 10, buffer):
            assert sorted(reading[start : start + buffer]) == LETTERS[start : start + buffer]
    assert len({tuple(reading) for reading in readings}) > 3, "a new order each time"
    assert [texts(read(Stream(LETTERS, buffer)).take(10))] == readings[:1]
    assert len({tuple(texts(read(Stream(LETTERS, buffer), seed=seed).take(10))) for seed in range(6)}) > 2


def test_a_resume_reads_from_the_block_under_way(read):
    reader = read(Stream(LETTERS, 4))
    reader.take(6)
    again = Stream(LETTERS, 4)
    resumed = read(again)
    resumed.load_state_dict(reader.state_dict())
    resumed.take(1)
    assert again.starts == [4]


def test_a_stream_is_not_read_ahead(read):
    source = Stream(LETTERS)
    reader = read(source)
    assert source.starts == [], "nothing at construction"
    reader.take(len(LETTERS))
    assert source.starts == [0]


def test_long_prompts_are_dropped_counted_and_told_at_the_end_of_a_reading(read):
    reader = read(Stream(["a", "bcd", "efgh", "ij"]), limit=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert texts(reader.take(2)) == ["a", "ij"]
    assert reader.metrics() == {"prompts/dropped": 2, "prompts/readings": 0}
    with pytest.warns(UserWarning, match=r"2 of 4 prompts of the stream 'stream' \(50.0%\) are longer than 2 tokens and dropped"):
        assert texts(reader.take(2)) == ["a", "ij"]
    assert reader.metrics() == {"prompts/dropped": 4, "prompts/readings": 1}
    with pytest.warns(UserWarning, match="2 of 4 prompts"):
        reader.take(1)


@pytest.mark.filterwarnings("ignore:.*are longer")
def test_the_count_goes_through_a_resume(read):
    whole, half = (read(Stream(["abc", "a", "bcd", "ij"], 2), limit=2) for _ in range(2))
    whole.take(7)
    half.take(3)
    resumed = read(Stream(["abc", "a", "bcd", "ij"], 2), limit=2)
    resumed.load_state_dict(half.state_dict())
    resumed.take(4)
    assert resumed.state_dict() == whole.state_dict()
    assert whole.metrics()["prompts/dropped"] in (6, 7)


def test_long_prompts_of_a_stream_are_cut_or_refused(policy, read):
    reader = read(Stream(["a", "bcd"]), limit=2, long="truncate_left")
    assert [policy.decode(p.tokens) for p in reader.take(2)] == ["a", "cd"]
    refusing = read(Stream(["a", "bcd"]), limit=2, long="refuse")
    assert texts(refusing.take(1)) == ["a"]
    with pytest.raises(UserError, match=r"of the stream 'stream' is longer than 2 tokens\. Set `long_prompts`"):
        refusing.take(1)


@pytest.mark.parametrize(("rows", "limit"), [(["abc", "bcd"], 2), ([], None)])
def test_a_stream_of_which_nothing_fits_ends(rows, limit, read):
    with pytest.raises(UserError, match=f"ended after {len(rows)} prompts without one"):
        read(Stream(rows), limit=limit).take(1)


def test_a_negative_buffer(read):
    with pytest.raises(UserError, match=r"shuffle_buffer: .* got -1"):
        read(Stream(LETTERS, -1))


def test_an_evaluation_reads_a_bounded_stream_once(read):
    with pytest.raises(UserError, match=r"The stream 'stream' can't be an evaluation set.*Set its `max_prompts`"):
        read(Stream(LETTERS)).in_order()
    source = Stream(["abc", *LETTERS], 4, max_prompts=5)
    reader = read(source, limit=2)
    assert texts(reader.in_order()) == LETTERS[:4]
    assert source.starts == [0]
    assert len(reader.take(4)) == 4
    assert texts(reader.in_order()) == LETTERS[:4], "wherever the training is"


# Mixtures


def mixture(*weights: float, **kinds: list[str]) -> MixedPrompts:
    return MixedPrompts([ListPrompts(rows, name=name) for name, rows in kinds.items()], [*weights])


@pytest.mark.parametrize(("x", "y", "size"), [(3, 1, 8), (3, 1, 3), (0.7, 0.3, 5), (1e-3, 1, 4), (1, 0, 3)])
def test_a_mixture_keeps_its_shares(x, y, size, read):
    reader = read(mixture(x, y, x=LETTERS, y=LETTERS[:3]))
    share, counts = x / (x + y), Counter()
    for taken in range(size, 60 * size, size):
        counts.update(p.prompt.dataset for p in reader.take(size))
        assert abs(counts["x"] - share * taken) < 1
        assert counts["x"] + counts["y"] == taken
    if share < 1:
        assert counts["y"] > 3
    if share > 1e-2:
        assert counts["x"] > 3


def test_each_source_has_its_own_order_and_is_read_again_when_it_ends(policy, read):
    reader = read(mixture(1, 1, x=LETTERS, y=LETTERS))
    taken = [p for _ in range(20) for p in reader.take(2)]  # one of each at a time, two readings
    by = {name: [str(p.prompt.content) for p in taken if p.prompt.dataset == name] for name in "xy"}
    for said in by.values():
        assert sorted(said[:10]) == sorted(said[10:]) == LETTERS
    assert by["x"] != by["y"]
    assert {p.prompt.id for p in taken} == {prompt_id(name, row) for name in "xy" for row in range(10)}


def test_a_small_source_comes_several_times_in_a_take(read):
    taken = read(mixture(1, 3, x=LETTERS, y=["aa", "bb"])).take(8)
    small = [p for p in taken if p.prompt.dataset == "y"]
    assert sorted((p.prompt.content, p.occurrence) for p in small) == [(t, i) for t in ("aa", "bb") for i in range(3)]
    for text in ("aa", "bb"):
        assert [p.occurrence for p in small if p.prompt.content == text] == [0, 1, 2], "in the order of the rollout"
    assert {p.occurrence for p in taken if p.prompt.dataset == "x"} == {0}


def test_a_mixture_has_no_pattern(read):
    """Slices of a rollout go to ranks: none of them may be one dataset's by construction."""
    reader = read(mixture(1, 1, x=LETTERS, y=LETTERS))
    seen = ["".join(p.prompt.dataset for p in reader.take(4)) for _ in range(40)]
    assert {*seen} == {"".join(order) for order in itertools.permutations("xxyy")}


def test_weights_may_change_between_runs(read):
    rows = {"x": LETTERS, "y": LETTERS}
    before = read(mixture(1, 1, **rows))
    first = [p for _ in range(2) for p in before.take(5)]
    after = read(mixture(1, 4, 5, **rows, z=["aa"]))
    after.load_state_dict(before.state_dict())
    then = after.take(20)
    assert 1 <= Counter(p.prompt.dataset for p in then)["x"] <= 3, "new shares at once, nothing made up for"
    for name in "xy":
        times = Counter(p.prompt.id for p in [*first, *then] if p.prompt.dataset == name)
        assert max(times.values()) - (min(times.values()) if len(times) == 10 else 0) == 1, "each goes on in its own reading"
    without = read(mixture(1, x=LETTERS))
    without.load_state_dict(after.state_dict())
    assert len(without.take(3)) == 3


@pytest.mark.filterwarnings("ignore:1 of 2 prompts")
def test_a_mixture_in_order_is_every_prompt_whatever_its_weight(read):
    reader = read(mixture(1, 0, x=["b", "a"], y=["abc", "j"]), limit=2)
    found = [(p.prompt.dataset, p.prompt.content) for p in reader.in_order()]
    assert found == [("x", "b"), ("x", "a"), ("y", "j")]


def test_metrics_and_summary_name_the_source(read):
    reader = read(MixedPrompts([ListPrompts(LETTERS), Stream(LETTERS, 4)], [3, 1]))
    reader.take(40)
    assert reader.metrics() == {"prompts/dropped/stream": 0, "prompts/readings/stream": 0}
    assert "list, 75.0% of a rollout: 10 of 10; 0.0% are too long" in reader.summary()
    assert "stream, 25.0% of a rollout: a stream, read shuffled 4 at a time" in reader.summary()
    assert "read in order" in read(Stream(LETTERS)).summary()


def test_another_kind_of_source(read):
    class Odd(PromptSource):
        def __iter__(self) -> Iterator[Prompt]:
            return iter([])

    with pytest.raises(UserError, match=r"got Odd\. Inherit"):
        read(Odd())
