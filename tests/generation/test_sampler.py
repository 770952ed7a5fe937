"""A response is a function of the policy, its prompt and its noise: never of who was sampled with it."""

import math
from itertools import product

import pytest
import torch
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.generation.noise import gumbel, row_keys
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Prompt, Stream
from tests.tiny import write_tiny

EOS = 1
STREAM = Stream(seed=0, name="train", rollout=2)
TOKENS = [(2, 5), (7,), (3, 4, 5, 6, 7, 8, 9), (2, 2, 11), (13, 3), (12, 11, 10, 9), (7,), (5, 5, 5)]
IDS = [11, 12, 13, 14, 15, 16, 12, 18]  # the seventh prompt is the second one again


def encoded(tokens=TOKENS, ids=IDS):
    seen: dict[int, int] = {}
    prompts = []
    for each, number in zip(tokens, ids, strict=True):
        seen[number] = seen.get(number, -1) + 1
        prompts.append(EncodedPrompt(Prompt(id=number, content=""), each, seen[number]))
    return prompts


PROMPTS = encoded()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("policies")
    return {pad: write_tiny(root / str(pad), pad=pad) for pad in (True, False)}


@pytest.fixture(scope="module")
def policy(folders):
    return CausalPolicy(folders[True], temperature=0.9).eval()


def sample(policy, prompts=PROMPTS, k=4, length=16, stream=STREAM, greedy=False):
    with policy.inference():
        return CacheSampler(length, greedy).sample(policy, prompts, k, stream)


def rows(*rollouts):
    """Tokens, log-probs and finished of every response, by prompt id, occurrence and k."""
    found = {}
    for part in rollouts:
        for i, prompt in enumerate(part.prompts):
            for k in range(part.finished.shape[1]):
                keep = part.response_mask[i, k]
                tokens, logps = part.response_tokens[i, k][keep].tolist(), part.sampling_logps[i, k][keep]
                found[prompt.id, int(part.occurrences[i]), k] = (tokens, logps, bool(part.finished[i, k]), part.texts[i][k])
    return found


@torch.no_grad()
def perturbed(policy, prompt, key, written):
    """What the next token is chosen by: one row, no padding, no cache."""
    logits = policy.model(input_ids=torch.tensor([[*prompt.tokens, *written]])).logits[0, -1].float() / policy.temperature
    return logits + gumbel(key.unsqueeze(0), len(written), len(logits))[0]


def key_of(prompt, k, stream=STREAM):
    return row_keys(stream, torch.tensor([prompt.prompt.id]), torch.tensor([prompt.occurrence]), k + 1)[0, k]


def assert_same(policy, one, other):
    """Equal tokens, log-probs, ends and texts. One row may differ where its two best perturbed logits tie to rounding error."""
    prompts = {(p.prompt.id, p.occurrence): p for p in PROMPTS}
    ties = 0
    for (number, occurrence, k), (tokens, logps, finished, text) in one.items():
        tokens_, logps_, finished_, text_ = other[number, occurrence, k]
        if tokens != tokens_:
            prompt = prompts[number, occurrence]
            common = next(i for i, (a, b) in enumerate(zip(tokens, tokens_, strict=False)) if a != b)
            best, second = perturbed(policy, prompt, key_of(prompt, k), tokens[:common]).topk(2).values
            assert best - second < 1e-4, f"prompt {number}, response {k}: {tokens} and {tokens_} are no tie"
            ties += 1
        else:
            assert_close(logps, logps_, atol=1e-4, rtol=0)
            assert (finished, text) == (finished_, text_)
    assert ties <= 1


def test_responses_are_those_of_one_row_at_a_time_without_cache_or_padding(policy):
    """So neither batch, padding, cache nor the dropping of finished rows has a part in them."""
    drawn = sample(policy)
    lengths = drawn.response_mask.sum(-1).flatten()
    assert len(lengths.unique()) > 3  # rows did finish at different steps
    alone = {}
    for prompt, k in product(PROMPTS, range(4)):
        written, key = [], key_of(prompt, k)
        while len(written) < 16 and EOS not in written:
            written.append(int(perturbed(policy, prompt, key, written).argmax()))
        with torch.no_grad():
            logits = policy.model(input_ids=torch.tensor([[*prompt.tokens, *written]])).logits[0, len(prompt.tokens) - 1 : -1]
        logps = (logits / policy.temperature).log_softmax(-1)[range(len(written)), written]
        alone[prompt.prompt.id, prompt.occurrence, k] = (written, logps, written[-1] == EOS, policy.decode(written))
    assert_same(policy, rows(drawn), alone)


@pytest.mark.parametrize("size", [1, 3])
def test_chunks_change_nothing(policy, size):
    chunks = [sample(policy, PROMPTS[i : i + size]) for i in range(0, len(PROMPTS), size)]
    assert_same(policy, rows(sample(policy)), rows(*chunks))


def test_the_order_of_prompts_changes_nothing(policy):
    order = [5, 2, 7, 0, 6, 1, 4, 3]
    moved = sample(policy, [PROMPTS[i] for i in order])
    assert [prompt.id for prompt in moved.prompts] == [IDS[i] for i in order]
    assert_same(policy, rows(sample(policy)), rows(moved))


@pytest.mark.parametrize("fewer", [1, 2])
def test_more_responses_leave_the_first_ones(policy, fewer):
    assert_same(policy, rows(sample(policy, k=fewer)), rows(sample(policy)))


def test_a_longer_neighbour_changes_nothing(policy):
    """Its prompt pads every other prompt."""
    longer = EncodedPrompt(Prompt(id=99, content=""), tuple(range(3, 14)) * 2)
    assert_same(policy, rows(sample(policy)), rows(sample(policy, [*PROMPTS, longer])))


@pytest.mark.parametrize("shorter", [1, 5])
def test_a_shorter_limit_gives_the_beginnings(policy, shorter):
    cut, whole = sample(policy, length=shorter), rows(sample(policy))
    assert cut.response_tokens.shape[-1] == shorter
    starts = {}
    for key, (tokens, logps, _, _) in whole.items():
        start = tokens[:shorter]
        starts[key] = (start, logps[:shorter], start[-1] == EOS, policy.decode(start))
    assert_same(policy, rows(cut), starts)


def test_samples_ignore_the_global_generator_and_leave_it_alone(policy):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = sample(policy)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(6)
    other = sample(policy)
    assert torch.equal(one.response_tokens, other.response_tokens)
    assert torch.equal(one.sampling_logps, other.sampling_logps)  # the same layout: the same bits


@pytest.mark.parametrize("stream", [Stream(1, "train", 2), Stream(0, "eval", 2), Stream(0, "train", 3)])
def test_another_stream_draws_other_responses(policy, stream):
    one, other = rows(sample(policy)), rows(sample(policy, stream=stream))
    same = sum(one[key][0] == other[key][0] for key in one)
    assert same <= len(one) // 4


def test_the_same_prompt_twice_draws_twice(policy):
    drawn = rows(sample(policy))
    again = [drawn[12, 0, k][0] == drawn[12, 1, k][0] for k in range(4)]
    assert sum(again) <= 1


def test_masks_end_with_eos_and_say_who_finished(policy):
    drawn = sample(policy, length=6)
    mask, tokens = drawn.response_mask, drawn.response_tokens
    assert drawn.finished.any()
    assert not drawn.finished.all()
    for row, keep, finished in zip(
        tokens.flatten(0, 1).tolist(), mask.flatten(0, 1).tolist(), drawn.finished.flatten().tolist(), strict=True
    ):
        length = sum(keep)
        assert keep == [True] * length + [False] * (6 - length)
        assert (row[length - 1] == EOS) == finished
        assert EOS not in row[: length - 1]
        assert finished or length == 6
        assert row[length:] == [policy.pad_id] * (6 - length)
    assert (drawn.sampling_logps[~mask] == 0).all()
    assert (drawn.sampling_logps[mask] < 0).all()
    assert torch.equal(drawn.loss_mask, mask)
    assert drawn.policy_version == 2
    assert drawn.occurrences.tolist() == [0, 0, 0, 0, 0, 0, 1, 0]


def test_an_end_at_the_last_step_is_finished(policy):
    drawn = sample(policy, length=16)
    i, k = next((i, k) for i, k in product(range(8), range(4)) if drawn.finished[i, k] and drawn.response_mask[i, k].sum() > 1)
    length = int(drawn.response_mask[i, k].sum())
    assert sample(policy, length=length).finished[i, k]
    assert not sample(policy, length=length - 1).finished[i, k]


def test_every_end_of_the_policy_ends_a_response(folders):
    policy = CausalPolicy(folders[True])
    policy.eos_ids = frozenset({EOS, 5, 6})
    drawn = sample(policy)
    last = {tokens[-1] for tokens, _, finished, _ in rows(drawn).values() if finished}
    assert last == {EOS, 5, 6}
    assert not any(set(tokens[:-1]) & {EOS, 5, 6} for tokens, *_ in rows(drawn).values())


def test_columns_that_nobody_wrote_are_left_out(folders):
    policy = CausalPolicy(folders[True])
    policy.eos_ids = frozenset(range(14))
    drawn = sample(policy)
    assert drawn.response_tokens.shape == (8, 4, 1)
    assert drawn.finished.all()


def test_texts_leave_special_tokens_out(policy):
    for tokens, _, _, text in rows(sample(policy)).values():
        assert text == "".join("???abcdefghij "[token] for token in tokens if token > 2)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("pad", [True, False], ids=["a pad token", "pad is EOS"])
def test_log_probs_are_those_of_the_training_forward(folders, pad, temperature):
    policy = CausalPolicy(folders[pad], temperature=temperature)
    drawn = sample(policy)
    assert drawn.finished.any()
    assert not drawn.finished.all()
    trained = policy(drawn).token_logps.detach()
    assert_close(drawn.sampling_logps, trained.where(drawn.response_mask, 0.0), atol=1e-4, rtol=0)


@pytest.mark.parametrize("pad", [True, False], ids=["a pad token", "pad is EOS"])
def test_greedy_answers_are_those_of_hugging_face(folders, pad):
    policy = CausalPolicy(folders[pad], temperature=0.7)
    drawn = sample(policy, k=2, greedy=True)
    assert torch.equal(drawn.response_tokens[:, 0], drawn.response_tokens[:, 1])
    assert drawn.finished.any()
    assert not drawn.finished.all()
    with policy.inference():
        theirs = policy.model.generate(
            input_ids=drawn.prompt_tokens,
            attention_mask=drawn.prompt_mask.long(),
            do_sample=False,
            max_new_tokens=16,
            pad_token_id=policy.pad_id,
        )[:, drawn.prompt_tokens.shape[1] :]
    assert torch.equal(drawn.response_tokens[:, 0], theirs)


def test_samples_follow_the_policys_distribution(policy):
    """All responses of at most two tokens, enumerated: their frequencies against their exact probabilities."""
    prompt = torch.tensor([2, 5])
    with torch.no_grad():
        continued = torch.cat([prompt.expand(14, 2), torch.arange(14).unsqueeze(-1)], 1)  # every first token
        logps = (policy.model(input_ids=continued).logits.double() / policy.temperature).log_softmax(-1)
    first, second = logps[0, 1].exp(), logps[:, 2].exp()  # [14], [14, 14]
    exact = first.unsqueeze(-1) * second
    exact[EOS] = 0
    exact[EOS, 0] = first[EOS]  # ended: nothing after it
    k, repeats = 1000, 40
    prompts = [EncodedPrompt(Prompt(id=i, content=""), (2, 5)) for i in range(repeats)]
    drawn = sample(policy, prompts, k, length=2)
    one, two = drawn.response_tokens.where(drawn.response_mask, 0).flatten(0, 1).unbind(-1)
    counts = (one * 14 + two).bincount(minlength=196).double()
    expected = exact.flatten() * k * repeats
    often = expected >= 5
    assert often.sum() > 50
    counts, expected = (torch.cat([x[often], x[~often].sum().view(1)]) for x in (counts, expected))
    chi_square, degrees = float(((counts - expected).square() / expected).sum()), len(counts) - 1
    assert chi_square < degrees + 4 * math.sqrt(2 * degrees)
