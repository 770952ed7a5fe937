"""A stop string is found in the token that completes it, however the tokens cut its characters, and in no other."""

import random

import pytest
import torch

from lit_align.generation.stopping import StopStrings
from lit_align.models import CausalPolicy
from lit_align.types import UserError
from tests.tokenizers import of_bytes, of_characters, write_with_tokenizer

IM_START, IM_END = 3, 4
MERGES = [("a", "b"), ("Ċ", "Ċ"), ("ab", "ĊĊ"), ("Ġ", "Ċ")]
TOKENIZERS = {"bytes": lambda: of_bytes(MERGES), "characters, else bytes": lambda: of_characters("ab\n")}


@pytest.fixture(scope="module", params=TOKENIZERS)
def policy(request, tmp_path_factory):
    return CausalPolicy(write_with_tokenizer(tmp_path_factory.mktemp("policy"), TOKENIZERS[request.param]()))


@pytest.fixture(scope="module")
def of_byte_level(tmp_path_factory):
    return CausalPolicy(write_with_tokenizer(tmp_path_factory.mktemp("bytes"), of_bytes(MERGES)))


def end_of(policy, stop, tokens):
    """After how many tokens the response ends, None if it goes on."""
    stops = StopStrings(stop, policy, 1)
    for count, token in enumerate(tokens, start=1):
        if stops.ended(torch.tensor([0]), torch.tensor([token])).item():
            return count
    return None


def first_text_with(policy, stop, tokens):
    """The same, by decoding everything every time."""
    return next((n for n in range(1, len(tokens) + 1) if any(s in policy.decode(tokens[:n]) for s in stop)), None)


def written(policy, text):
    return policy.tokenizer(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("stop", [["😀"], ["éé"], ["b\n"], [" a"], ["ab😀é"], ["😀" * 3], ["a" * 9, "éa\n"], ["yaaa😀"], ["\n\n", "b"]])
def test_it_is_found_when_the_text_has_it(policy, stop):
    """Random writing of few pieces, in which whole and broken characters, special tokens and stop strings are frequent."""
    pieces = [written(policy, text) for text in ("a", "b", "\n", " ", "é", "y", "😀", "y😀😀", *stop, stop[0][:-1])]
    pieces += [written(policy, "😀")[-4:][:n] for n in (1, 3)] + [written(policy, "é")[-1:], [IM_START], [0]]
    found = 0
    for seed in range(60):
        draw = random.Random(seed)
        tokens = [token for _ in range(draw.choice([4, 12, 40])) for token in draw.choice(pieces)]
        if seed % 3 == 0:  # nothing breaks the characters, so that few things end it early
            tokens = written(policy, "".join(draw.choice(["a", "é", "😀", "y"]) for _ in range(60)) + stop[0])
        expected = first_text_with(policy, stop, tokens)
        assert end_of(policy, stop, tokens) == expected, (seed, tokens)
        found += expected is not None
    assert found > 20


@pytest.mark.parametrize("count", [0, 1, 30, 200])
def test_what_came_before_hides_nothing(policy, count):
    """A tail of characters that can only be read from their beginning, and special tokens that no text shows."""
    for before in ("😀" * count, "a" * count, "éa" * count):
        tokens = [*written(policy, before), *[IM_START] * count, *written(policy, "b😀\n")]
        assert end_of(policy, ["b😀\n"], tokens) == len(tokens)


def test_the_whole_text_decides(policy):
    """A byte that belongs to no character spoils those after it in one of the tokenizers, and the end of the tokens does not show it."""
    one_byte, after = written(policy, "😀")[-4:][:1], written(policy, "b" + "é" * 10 + "a")
    tokens = one_byte + after[after.index(written(policy, "b")[-1]) + 1 :]
    assert policy.decode(tokens).endswith("a")
    assert end_of(policy, ["ééa"], tokens) == first_text_with(policy, ["ééa"], tokens)


def test_in_the_middle_of_a_token(of_byte_level):
    tokens = written(of_byte_level, "ab\n\n")
    assert len(tokens) == 1
    assert end_of(of_byte_level, ["b\n"], tokens) == 1
    stops = StopStrings(["b\n", "\n\n"], of_byte_level, 1)
    assert stops.cut("xab\n\n") == "xa"  # before the first of them, whichever was named first
    assert stops.cut("xa\nb") == "xa\nb"


def test_with_the_last_byte_of_a_character(of_byte_level):
    tokens = written(of_byte_level, "a😀b")
    assert len(tokens) == 6
    assert end_of(of_byte_level, ["😀"], tokens) == 5


def test_rows_are_judged_alone(of_byte_level):
    a, b = (written(of_byte_level, letter)[0] for letter in "ab")
    stops = StopStrings(["ba"], of_byte_level, 3)
    assert stops.ended(torch.tensor([0, 1, 2]), torch.tensor([b, a, b])).tolist() == [False, False, False]
    assert stops.ended(torch.tensor([2, 1]), torch.tensor([a, b])).tolist() == [True, False]  # row 0 ended otherwise
    assert stops.ended(torch.tensor([1]), torch.tensor([a])).tolist() == [True]


def test_without_stop_strings_nothing_is_decoded(of_byte_level, monkeypatch):
    monkeypatch.setattr(CausalPolicy, "decode", lambda *_: pytest.fail("decoded"))
    stops = StopStrings([], of_byte_level, 2)
    assert stops.ended(torch.tensor([0, 1]), torch.tensor([7, 8])).tolist() == [False, False]
    assert stops.cut("anything") == "anything"


def test_few_tokens_are_decoded(of_byte_level, monkeypatch):
    tokens, decode, read = written(of_byte_level, "a" * 1000), CausalPolicy.decode, []
    monkeypatch.setattr(CausalPolicy, "decode", lambda self, some: read.append(len(some)) or decode(self, some))
    assert end_of(of_byte_level, ["stop"], tokens) is None
    assert max(read) <= 6


@pytest.mark.parametrize("named", ["<|im_end|>", "<|im_start|>"])
def test_a_special_token_is_an_end(policy, named):
    assert StopStrings(["a", named], policy, 1).tokens == {policy.tokenizer.convert_tokens_to_ids(named)}


def test_the_policys_own_end_may_be_named(policy):
    assert not StopStrings(["<eos>"], policy, 1).tokens - policy.eos_ids


@pytest.mark.parametrize("mixed", ["<|im_end|>\n", "a<|im_end|>", "<|im_end|><|im_start|>"])
def test_a_special_token_beside_something_else_is_refused(policy, mixed):
    with pytest.raises(UserError, match=r"a special token stands beside something else.*Name the special token alone"):
        StopStrings([mixed], policy, 1)
