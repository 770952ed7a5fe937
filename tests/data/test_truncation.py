"""A prompt that is cut keeps its end, its system turn and its BOS; whatever is left is as long as it may be."""

import warnings

import pytest

from lit_align.data.pool import PromptPool
from lit_align.data.truncation import encode_within
from lit_align.models import CausalPolicy
from lit_align.types import IndexedPrompts, Prompt, UserError
from tests.tokenizers import CHATML, of_bytes, write_with_tokenizer

BOS = 2
SYSTEM = {"role": "system", "content": "be kind"}
TURNS = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": "second answer"},
    {"role": "user", "content": "and the third question"},
]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    path = write_with_tokenizer(tmp_path_factory.mktemp("policy"), of_bytes([("a", "n"), ("Ġ", "an")], bos=True))
    return CausalPolicy(path, chat_template=str(CHATML))


class Source(IndexedPrompts):
    def __init__(self, *contents) -> None:
        self.prompts = [Prompt(i, content if isinstance(content, str) else tuple(content)) for i, content in enumerate(contents)]

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


def chat(*messages):
    return Prompt(id=3, content=tuple(messages))


def length(policy, *messages):
    return len(policy.encode(chat(*messages)))


@pytest.mark.parametrize("system", [[], [SYSTEM], [SYSTEM, {"role": "developer", "content": "be brief"}]], ids=["none", "one", "two"])
def test_whole_oldest_turns_go_and_the_system_turn_stays(policy, system):
    """At every length: nothing goes that could have stayed, and no answer is left without its question."""
    sizes = [length(policy, *system, *TURNS[start:]) for start in (0, 2, 4)]
    assert sizes == sorted(sizes, reverse=True)
    for limit in range(sizes[2], sizes[0] + 3):
        start = next(2 * i for i, size in enumerate(sizes) if size <= limit)
        assert encode_within(policy, chat(*system, *TURNS), limit) == policy.encode(chat(*system, *TURNS[start:]))


def test_of_the_last_turn_the_end_stays(policy):
    whole, empty = length(policy, SYSTEM, TURNS[4]), length(policy, SYSTEM, TURNS[4] | {"content": ""})
    starts = []
    for limit in range(empty, whole):
        tokens = encode_within(policy, chat(SYSTEM, *TURNS), limit)
        assert tokens is not None
        assert limit - 1 <= len(tokens) <= limit  # a merge may leave room for half of it
        text = policy.tokenizer.decode(tokens)
        head, _, tail = text.partition("<|im_start|>user\n")
        assert head == "<bos><|im_start|>system\nbe kind<|im_end|>\n"
        kept = tail.removesuffix("<|im_end|>\n<|im_start|>assistant\n")
        assert kept != tail
        assert TURNS[4]["content"].endswith(kept)
        starts.append(len(kept))
    assert starts == sorted(set(starts))
    assert encode_within(policy, chat(SYSTEM, *TURNS), empty - 1) is None


def test_what_follows_the_last_question_stays(policy):
    begun = {"role": "assistant", "content": "well,"}
    limit = length(policy, SYSTEM, TURNS[4], begun)
    assert encode_within(policy, chat(SYSTEM, *TURNS, begun), limit) == policy.encode(chat(SYSTEM, TURNS[4], begun))
    tokens = encode_within(policy, chat(SYSTEM, *TURNS, begun), limit - 4)
    assert tokens is not None
    assert policy.decode(tokens).endswith("third question\nassistant\nwell,\nassistant\n")


def test_a_conversation_without_a_question_has_nothing_to_cut(policy):
    assert encode_within(policy, chat(SYSTEM, TURNS[1]), 10) is None
    assert encode_within(policy, chat(SYSTEM), 3) is None


@pytest.mark.parametrize("text", ["abcdefgh", "<bos>abcdefgh"])
def test_a_text_keeps_its_bos(policy, text):
    for limit in range(2, 9):
        tokens = encode_within(policy, Prompt(id=1, content=text), limit)
        assert tokens is not None
        assert (tokens[0], policy.decode(tokens)) == (BOS, "abcdefgh"[-(limit - 1) :])
        assert len(tokens) == limit
        assert BOS not in tokens[1:]
    assert encode_within(policy, Prompt(id=1, content=text), 1) == [BOS]
    assert encode_within(policy, Prompt(id=1, content=text), 9) == policy.encode(Prompt(id=1, content="abcdefgh"))


def test_a_text_without_one_gets_none(tmp_path):
    policy = CausalPolicy(write_with_tokenizer(tmp_path, of_bytes()))
    tokens = encode_within(policy, Prompt(id=1, content="<|im_start|>abcdefgh"), 3)
    assert tokens is not None
    assert policy.decode(tokens) == "fgh"


def test_the_pool_cuts_and_the_annotator_sees_the_whole(policy):
    prompts = [chat(SYSTEM, *TURNS), chat(*TURNS[4:]), Prompt(id=5, content="a long text without turns in it")]
    source = Source(*(prompt.content for prompt in prompts))
    limit = length(policy, SYSTEM, TURNS[4]) - 9
    pool = PromptPool(source, policy, limit, "truncate_left", 0)
    assert (len(pool), pool.dropped) == (3, 0)
    for encoded, prompt in zip(pool.in_order(), prompts, strict=True):
        assert list(encoded.tokens) == encode_within(policy, prompt, limit)
        assert len(encoded.tokens) <= limit
        assert encoded.prompt.content == prompt.content
    assert {e.tokens for e in pool.take(0, 3)} == {e.tokens for e in pool.in_order()}


def test_what_can_not_be_cut_enough_is_dropped_and_told(policy):
    wordy = {"role": "system", "content": "be kind " * 9}
    source = Source([wordy, TURNS[0]], [SYSTEM, *TURNS], "abc")
    limit = length(policy, SYSTEM, TURNS[4])
    with pytest.warns(UserWarning, match=rf"1 of 3 prompts \(33\.3%\) are longer than {limit} tokens even with all turns cut that may be"):
        pool = PromptPool(source, policy, limit, "truncate_left", 0)
    assert [p.prompt.content for p in pool.in_order()] == [source[1].content, "abc"]
    with pytest.raises(
        UserError, match=r"All 1 prompts are longer than 9 tokens even with .* that may be\. Shorten the system turns, lower"
    ):
        PromptPool(Source([SYSTEM, TURNS[0]]), policy, 9, "truncate_left", 0)


def test_what_fits_is_left_alone(policy):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pool = PromptPool(Source([SYSTEM, *TURNS], "abc"), policy, 500, "truncate_left", 0)
    assert [list(p.tokens) for p in pool.in_order()] == [policy.encode(p.prompt) for p in pool.in_order()]
