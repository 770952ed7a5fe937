"""A stop string ends a response and changes nothing else: not its tokens, its log-probs, or another response."""

import pytest
import torch
from torch.testing import assert_close

from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import EncodedPrompt, Prompt, Stream, UserError
from tests.generation.test_sampler import PROMPTS, STREAM, assert_same, rows
from tests.tiny import write_tiny
from tests.tokenizers import of_bytes, write_with_tokenizer

EOS = 1
STOP = ["aj", "cd", "hgh", "ii"]


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    return CausalPolicy(write_tiny(tmp_path_factory.mktemp("policy")), temperature=0.9).eval()


def sample(policy, stop=STOP, prompts=PROMPTS, k=16, length=16):
    with policy.inference():
        return CacheSampler(length, stop=stop).sample(policy, prompts, k, STREAM)


def test_it_ends_the_response_that_would_have_been(policy):
    whole, stopped, ends = rows(sample(policy, stop=[])), rows(sample(policy)), []
    for key, (tokens, logps, finished, _) in whole.items():
        texts = [policy.decode(tokens[: n + 1]) for n in range(len(tokens))]
        end = next((n + 1 for n, text in enumerate(texts) if any(stop in text for stop in STOP)), None)
        found, found_logps, found_finished, text = stopped[key]
        assert found == tokens[:end]
        assert_close(found_logps, logps[: len(found)], atol=1e-4, rtol=0)
        assert found_finished == (finished or end is not None)
        written = policy.decode(found)
        cut = min((written.index(stop) for stop in STOP if stop in written), default=len(written))
        assert text == written[:cut]
        assert (cut < len(written)) == (end is not None)
        ends.append(end)
    assert 10 < sum(end is not None for end in ends) < len(ends) - 10
    assert len(set(ends)) > 5


def test_masks_and_training_see_all_tokens(policy):
    drawn = sample(policy)
    assert torch.equal(drawn.loss_mask, drawn.response_mask)
    with policy.inference():
        trained = policy(drawn).token_logps
    assert_close(drawn.sampling_logps, trained.where(drawn.response_mask, 0.0), atol=1e-4, rtol=0)
    ended_by_text = drawn.finished & ~(drawn.response_tokens == EOS).any(-1)
    assert ended_by_text.any()
    assert (drawn.sampling_logps[drawn.response_mask] < 0).all()
    assert (drawn.response_tokens[~drawn.response_mask] == policy.pad_id).all()


def test_batch_composition_changes_nothing(policy):
    whole = rows(sample(policy, k=4))
    assert_same(policy, whole, rows(*(sample(policy, prompts=[prompt], k=4) for prompt in PROMPTS)))
    assert_same(policy, whole, rows(sample(policy, prompts=PROMPTS[::-1], k=4)))
    assert_same(policy, whole, rows(sample(policy)))


def test_an_end_at_the_last_step_is_finished(policy):
    stopped = sample(policy)
    lengths = stopped.response_mask.sum(-1)
    ended_by_text = stopped.finished & ~(stopped.response_tokens == EOS).any(-1)
    tried = {length for length in lengths[ended_by_text].tolist() if length < 16}
    assert len(tried) > 2
    for length in tried:
        due = ended_by_text & (lengths == length)
        assert sample(policy, length=length).finished[due].all()
        assert not sample(policy, length=length - 1).finished[due].any()


def test_the_prompts_text_ends_nothing(policy):
    prompt = EncodedPrompt(Prompt(id=1, content="aj"), tuple(policy.encode(Prompt(id=1, content="cdaj"))))
    alone, stopped = (rows(sample(policy, stop, [prompt], 32)) for stop in ([], ["aj", "j" * 9]))
    assert [row[0] for row in alone.values() if "aj" not in row[3]] == [stopped[key][0] for key in alone if "aj" not in alone[key][3]]
    halves = rows(sample(policy, ["ja"], [prompt], 32))  # begun by the prompt's last letter
    assert any(row[3].startswith("a") for row in halves.values())


def test_a_special_token_ends_a_response(tmp_path):
    policy = CausalPolicy(write_with_tokenizer(tmp_path, of_bytes()))
    with torch.no_grad():  # likely enough to be drawn
        policy.model.lm_head.weight[4].copy_(policy.model.lm_head.weight.mean(0)).add_(0.2)
    prompts = [EncodedPrompt(Prompt(id=i, content=""), (2, i + 5)) for i in range(16)]
    whole, stopped = (rows(sample(policy, stop, prompts, 8, 40)) for stop in ([], ["<|im_end|>"]))
    ended = [key for key, (tokens, *_) in whole.items() if 4 in tokens]
    assert 5 < len(ended) < len(whole)
    for key, (tokens, _, finished, _) in whole.items():
        if key in ended:
            tokens, finished = tokens[: tokens.index(4) + 1], True
        assert stopped[key][0] == tokens
        assert stopped[key][2] == finished
        assert stopped[key][3] == policy.decode(tokens)


def test_a_view_of_a_policy_stops_too(tmp_path):
    policy = CausalPolicy(write_tiny(tmp_path), temperature=0.9, lora=LoRA(rank=2)).eval()
    plain = CausalPolicy(str(tmp_path), temperature=0.9).eval()
    assert sample(policy.make_reference().policy, ["a", "<bos>"], k=2).texts == sample(plain, ["a", "<bos>"], k=2).texts


def test_greedy_answers_stop(policy):
    with policy.inference():
        whole, stopped = (
            CacheSampler(16, greedy=True, stop=stop).sample(policy, PROMPTS, 1, Stream(0, "eval", 0)) for stop in ([], ["a", "b", "c"])
        )
    for (before,), (after,) in zip(whole.texts, stopped.texts, strict=True):
        assert after == min((before.partition(stop)[0] for stop in "abc"), key=len)
    assert whole.texts != stopped.texts


@pytest.mark.parametrize("stop", [[""], ["a", ""], ["\N{REPLACEMENT CHARACTER}"], [5]])
def test_what_could_not_be_meant_is_refused(stop):
    with pytest.raises(UserError, match="at least one character, and only whole ones, got"):
        CacheSampler(stop=stop)


def test_a_text_instead_of_a_list_is_refused():
    with pytest.raises(UserError, match=r"stop should be a list of texts, got 'ab'\. Write \['ab'\]"):
        CacheSampler(stop="ab")
