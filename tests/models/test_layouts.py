"""However responses are laid out, each is read as it is alone: log-probs, values, entropies and gradients."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from lit_align.models import CausalPolicy, reading
from lit_align.models.layouts import Texts, prefix_plan, rows_plan
from lit_align.models.reading import CHUNKED, LAYOUTS, PICKED, Layout, ResponseReader, cheapest
from lit_align.models.trees import packed, rooms
from tests.models.batches import make_rollouts, plain_logps
from tests.models.families import FAMILIES, write_family
from tests.tiny import write_tiny

EOS = 1
PROMPTS = [[2, 5], [7], [3, 4, 5, 6, 7, 8, 9], [2, 2, 11]]
RESPONSES = [[[5, 6, EOS], [EOS]], [[3, 4, 5, 6, 7, 8], [9, EOS]], [[12, 13, EOS], [13]], [[EOS], [4, 4, 4, 4, EOS]]]
ROLLOUTS = make_rollouts(PROMPTS, RESPONSES, 0, extra=(1, 2))
MASK = ROLLOUTS.response_mask


def trees_of(texts: Texts, room: int) -> Layout:
    return Layout("tree", packed(texts.lengths, room))


def gradients(policy: CausalPolicy, logps: torch.Tensor) -> list[torch.Tensor]:
    """Of a sum that tells the tokens apart, with respect to all that is trained."""
    weights = torch.linspace(-1, 1, logps.numel())
    return list(torch.autograd.grad((logps * weights).sum(), [p for p in policy.parameters() if p.requires_grad]))


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    made = CausalPolicy(write_tiny(tmp_path_factory.mktemp("layouts")), value_head=True)
    torch.nn.init.normal_(made.value_head.weight, generator=torch.Generator().manual_seed(0))
    return made


@pytest.mark.parametrize("choice", [("prefix", PICKED), ("tree", PICKED), ("rows",)])
def test_values_entropies_and_whole_distributions_too(choice, policy):
    policy.layouts = ()
    expected = policy(ROLLOUTS, vocabulary=True, entropy=True)
    policy.layouts = choice
    found = policy(ROLLOUTS, vocabulary=True, entropy=True)
    for (name, ours, letters), (other, theirs, _) in zip(found.tensors(), expected.tensors(), strict=True):
        assert name == other
        assert_close(ours, theirs, atol=1e-5, rtol=0)
        assert ours[~MASK].count_nonzero() == 0
        assert ours[MASK].std() > 1e-2, letters
    assert_close(found.vocabulary_logps[MASK].exp().sum(-1), torch.ones(int(MASK.sum())))


@pytest.mark.parametrize("room", [10, 16, 99])
def test_rows_of_any_room_say_the_same(room, policy, monkeypatch):
    """Several trees in a row, several of one prompt, all in one row."""
    policy.layouts = ()
    expected = policy(ROLLOUTS)
    plan = trees_of(Texts.of(ROLLOUTS), room).plan(Texts.of(ROLLOUTS))
    assert len(plan.tokens) == {10: 4, 16: 2, 99: 1}[room]
    monkeypatch.setattr(reading, "cheapest", lambda *asked: trees_of(Texts.of(ROLLOUTS), room))
    found = policy(ROLLOUTS)
    assert_close(found.token_logps, expected.token_logps, atol=1e-5, rtol=0)
    both = [gradients(policy, (output.token_logps + output.values)[MASK]) for output in (found, expected)]
    for ours, theirs in zip(*both, strict=True):
        assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.norm())), rtol=0)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_response_without_tokens_is_not_read(layout, policy):
    """Nor is a prompt without responses."""
    policy.layouts = ()
    whole = policy(ROLLOUTS).token_logps
    mask = MASK.clone()
    mask[1] = mask[2, 0] = False
    texts = Texts(ROLLOUTS.prompt_tokens, ROLLOUTS.prompt_mask, ROLLOUTS.response_tokens, mask)
    plan = (trees_of(texts, 9) if layout == "tree" else Layout(layout)).plan(texts)
    assert plan.tokens.numel() == {"rows": 5 * 7, "prefix": 5 * 5, "tree": 3 * 7}[layout]
    assert plan.prefix is None or len(plan.prefix.tokens) == 3
    said, _ = ResponseReader(policy.model).read(
        texts, lambda logits, tokens: [logits.log_softmax(-1)[range(len(tokens)), tokens]], (layout, PICKED)
    )
    assert_close(said[0], whole[mask], atol=2e-5, rtol=0)


def test_trees_hold_what_is_read_and_padding_at_the_end_of_a_row_only():
    plan = trees_of(Texts.of(ROLLOUTS), 9).plan(Texts.of(ROLLOUTS))
    assert plan.tokens.tolist() == [
        [3, 4, 5, 6, 7, 8, 9, 12, 13],
        [7, 3, 4, 5, 6, 7, 9, 0, 0],
        [2, 2, 11, 4, 4, 4, 4, 0, 0],
        [2, 5, 5, 6, 0, 0, 0, 0, 0],
    ]
    assert plan.positions.tolist()[1] == [0, 1, 2, 3, 4, 5, 1, 0, 0]
    assert plan.trees.tolist()[1] == [1] * 7 + [-1] * 2
    assert plan.branches.tolist()[1] == [0, 3, 3, 3, 3, 3, 4, 0, 0]
    assert plan.predicting.tolist()[:4] == [28, 29, 30, 28], "both responses begin after slot 1 of the last row"


def test_a_row_holds_several_trees_and_a_prompt_has_several_where_one_would_be_too_long():
    texts = Texts.of(make_rollouts([[7], [2, 5]], [[[3, 4, 5, 6, 7, 8], [9, EOS]], [[5, 6, EOS], [EOS]]], 0))
    plan = trees_of(texts, 6).plan(texts)
    assert plan.tokens.tolist() == [[7, 3, 4, 5, 6, 7], [2, 5, 5, 6, 7, 9]]
    assert plan.positions.tolist()[1] == [0, 1, 2, 3, 0, 1]
    assert plan.trees.tolist() == [[0] * 6, [2] * 4 + [1] * 2]
    assert plan.predicting.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 7, 8, 9, 7]


def forest(*groups: tuple[int, list[int]], room: int) -> tuple[int, int]:
    packing = packed(groups, room)
    return packing.rows, packing.width


def test_trees_are_packed_the_longest_first():
    """A response takes one slot less than it has tokens."""
    assert forest((5, [6]), (5, [6]), (3, [3]), (2, [4]), room=15) == (2, 15), "10 + 5, 10 + 5"
    assert forest((5, [6]), (5, [6]), (3, [3]), (2, [4]), room=10) == (3, 10)
    assert forest((4, [9, 9, 9, 9]), room=20) == (2, 20), "4 + 8 + 8, twice"
    assert forest((4, [9, 9, 9, 9]), room=12) == (4, 12)
    assert forest((4, [9, 9, 9, 9]), room=11) == (4, 12), "one alone is longer than the room"
    assert forest((4, [1, 1]), room=4) == (1, 4), "of a response of one token nothing is read"


def test_little_of_packed_rows_is_padding():
    """The numbers of docs/engine.md: 16 prompts with two responses each, as a small model wrote them."""
    prompts = [18, 38, 24, 35, 51, 42, 62, 31, 31, 21, 51, 53, 52, 46, 21, 33]
    first = [63, 64, 4, 41, 64, 7, 14, 9, 2, 2, 5, 5, 64, 64, 9, 10]
    second = [2, 49, 8, 64, 36, 32, 11, 54, 15, 64, 44, 64, 64, 28, 64, 60]
    lengths = [(p, [a, b]) for p, a, b in zip(prompts, first, second, strict=True)]
    row, (name, packing) = max(p + max(group) - 1 for p, group in lengths), cheapest(lengths, LAYOUTS, 256)
    tree = max(p + sum(group) - 2 for p, group in lengths)
    assert name == "tree"
    assert packing is not None
    assert (32 * row, 16 * tree, packing.rows * packing.width) == (3712, 2848, 1722)
    assert sum(p + sum(group) - 2 for p, group in lengths) == 1663


def test_rooms_reach_from_the_longest_text_to_the_largest_tree():
    found = rooms([(4, [9, 5]), (1, [2] * 90)])
    assert found == sorted({12, 13, 15, 18, 21, 24, 30, 36, 48, 72, 91})


def test_no_row_has_more_slots_than_the_context(tmp_path, monkeypatch):
    """A model may have a place for no more of them, whatever their positions; a text that is longer by itself is read as it is."""
    lengths = [(4, [9, 5]), (9, [2] * 90)]
    assert rooms(lengths, 20) == [12, 13, 15, 18, 20]
    assert rooms(lengths, 11) == [12]
    assert cheapest(lengths, ("prefix",), 64, 17) == Layout("prefix")
    assert cheapest(lengths, ("prefix",), 64, 16) == Layout("rows"), "the longest prompt but for a token, and the longest response"

    kind, options = FAMILIES["gpt_neo"]
    monkeypatch.setitem(FAMILIES, "short", (kind, options | {"max_position_embeddings": 12, "window_size": 12}))
    policy = CausalPolicy(write_family(tmp_path, "short"))
    assert max(rooms(Texts.of(ROLLOUTS).lengths)) > 12
    with policy.inference():
        for layout in LAYOUTS:
            policy.layouts = (layout, PICKED)
            said = policy(ROLLOUTS).token_logps
            for i, k in MASK.any(-1).nonzero().tolist():
                expected = plain_logps(policy.model, PROMPTS[i], RESPONSES[i][k])
                assert_close(said[i, k, : len(expected)], expected, atol=2e-5, rtol=0)


def test_rows_and_those_after_a_prefix_hold_what_is_read():
    """No last token, and padding that repeats what stands before it, as no mask hides it."""
    pairs = [(prompt, response) for prompt, group in zip(PROMPTS, RESPONSES, strict=True) for response in group]
    plan = rows_plan(Texts.of(ROLLOUTS))
    read = [[*prompt, *response[:-1]] for prompt, response in pairs]
    width = max(map(len, read))
    assert plan.tokens.tolist() == [row + row[-1:] * (width - len(row)) for row in read]
    assert (plan.mask, plan.positions) == (None, None)
    plan = prefix_plan(Texts.of(ROLLOUTS))
    seen = [tokens[mask].tolist() for tokens, mask in zip(plan.prefix.tokens, plan.prefix.mask, strict=True)]
    assert seen == [prompt[:-1] for prompt in PROMPTS]
    own = [tokens[mask[6:]].tolist() for tokens, mask in zip(plan.tokens, plan.mask, strict=True)]
    assert own == [[prompt[-1], *response[:-1]] for prompt, response in pairs]
    assert plan.owners.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def of_lengths(*groups: tuple[int, list[int]]) -> Texts:
    """Texts of these lengths: a prompt, its responses."""
    return Texts.of(make_rollouts([[3] * p for p, _ in groups], [[[4] * r for r in g] for _, g in groups], 0))


@pytest.mark.parametrize(
    ("texts", "picked"),
    [
        (of_lengths((20, [9]), (20, [9])), ("rows", 0)),  # nothing is shared or padded
        (of_lengths((20, [9]), (2, [9]), (10, [9])), ("tree", 28)),  # two fit in a row
        (of_lengths((64, [8, 20, 60, 9]), (40, [33, 8, 8, 64])), ("tree", 157)),  # uneven: the others would pad
        (of_lengths((64, [64] * 8), (64, [64] * 8)), ("prefix", 0)),  # even and many: the tree's square costs
        (of_lengths((64, [64, 9]), (64, [64, 9])), ("tree", 135)),
        (of_lengths((1, [64] * 4), (1, [64] * 4)), ("rows", 0)),  # no prompt to share
    ],
)
def test_the_cheapest_layout_is_a_function_of_lengths(texts, picked):
    name, packing = cheapest(texts.lengths, LAYOUTS, 64)
    assert (name, packing.width if packing else 0) == picked
    assert cheapest(texts.lengths, ("rows", PICKED), 64) == Layout("rows")
    assert cheapest(texts.lengths, ("tree", PICKED), 64).name == "tree", "whatever it costs"


def test_wide_models_pay_more_for_slots_and_narrow_ones_for_pairs():
    """Tree: 2 x 66 slots of 66 pairs. Prefix: 2 x 7 of 7, then 4 x 32 of 39."""
    lengths = of_lengths((8, [32, 28]), (8, [28, 32])).lengths
    slots = {"tree": 2 * 66, "prefix": 2 * 7 + 4 * 32}
    pairs = {"tree": 2 * 66 * 66, "prefix": 2 * 7 * 7 + 4 * 32 * 39}
    even = (pairs["tree"] - pairs["prefix"]) / (slots["prefix"] - slots["tree"]) / 6
    tree, prefix = Layout("tree", packed(lengths, 66)), Layout("prefix")
    assert tree.cost(lengths, int(even) - 1) > prefix.cost(lengths, int(even) - 1)
    assert tree.cost(lengths, int(even) + 2) < prefix.cost(lengths, int(even) + 2)


@pytest.mark.parametrize("family", ["gemma2", "cohere2", "granite", "llama"])
def test_a_head_in_chunks_says_the_same(family, tmp_path):
    """After whatever the family does to its logits, with a gradient to the head as well."""
    policy = CausalPolicy(write_family(tmp_path, family))
    policy.choose_layouts()
    assert CHUNKED in policy.layouts
    reader, texts, most = ResponseReader(policy.model), Texts.of(ROLLOUTS), []

    def say(logits: torch.Tensor, tokens: torch.Tensor) -> list[torch.Tensor]:
        most.append(len(logits))
        return [logits.log_softmax(-1)[range(len(tokens)), tokens]]

    found = []
    for above in (4 * 14, 1 << 28):
        said, _ = reader.read(texts, say, ("tree", PICKED, CHUNKED), chunk_above=above)
        found.append((said[0], gradients(policy, said[0])))
    assert sorted(most) == [2] * 2 + [4] * 10 + [22]  # each chunk once more for its gradient
    assert_close(found[0][0], found[1][0], atol=1e-5, rtol=0)
    for ours, theirs in zip(found[0][1], found[1][1], strict=True):
        assert_close(ours, theirs, atol=1e-5 * max(1.0, float(theirs.norm())), rtol=0)


def test_nothing_to_read_is_still_a_forward_with_a_gradient(policy):
    """Of sharded weights every rank must take as many."""
    policy.layouts, calls = ("tree", PICKED), []
    handle = policy.model.register_forward_pre_hook(lambda *call: calls.append(1))
    output = policy(replace(ROLLOUTS, response_mask=torch.zeros_like(MASK)), vocabulary=True, entropy=True)
    handle.remove()
    assert len(calls) == 1
    assert output.token_logps.shape == MASK.shape
    assert all(not tensor.count_nonzero() for _, tensor, _ in output.tensors())
    (output.token_logps.sum() + output.values.sum()).backward()
    assert all(p.grad is not None and not p.grad.count_nonzero() for p in policy.parameters())
    policy.zero_grad()
