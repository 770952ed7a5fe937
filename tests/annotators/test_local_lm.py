"""Options as sequences: each log-prob is that of the option's tokens after the prompt, and no option absorbs another."""

import math

import pytest
import torch
from lightning.pytorch.plugins.precision import HalfPrecision, MixedPrecision
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from lit_align.annotators import LocalLM
from lit_align.annotators.options import exclusive_logps, suffixes
from lit_align.types import UserError
from tests.annotators.test_reward_model import write_reward_model
from tests.annotators.worlds import CHAT, make_tokenizer, write_judge

TEN = tuple(str(i) for i in range(1, 11))
PROMPTS = ["ab=", "abcdefghij abcdefghij=", "c:", "j"]


def by_hand(folder, text, option):
    """Log-prob of the option's tokens, one unpadded row, in float64."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    tokenizer = make_tokenizer(ten="ten" in str(folder))
    context, whole = tokenizer(text)["input_ids"], tokenizer(text + option)["input_ids"]
    with torch.no_grad():
        logps = model(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(float(logps[i - 1, whole[i]]) for i in range(len(context), len(whole)))


@pytest.fixture(scope="module", params=["split", "ten"])
def judge(request, tmp_path_factory):
    return write_judge(tmp_path_factory.mktemp(request.param), make_tokenizer(ten=request.param == "ten"))


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_an_option_is_its_tokens_after_the_prompt(judge, batch_size):
    logps = LocalLM(judge, batch_size=batch_size).option_logps(PROMPTS, TEN)
    assert logps.dtype == torch.float32
    for n, prompt in enumerate(PROMPTS):
        expected = [by_hand(judge, prompt, option) for option in TEN]
        if "split" in judge:  # "1" includes "10" there
            expected[0] = math.log(math.exp(expected[0]) - math.exp(expected[9]))
        assert logps[n].tolist() == pytest.approx(expected, abs=1e-5)


def test_absolute_positions_start_at_the_first_real_token(tmp_path):
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=40, n_embd=32, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3)
    GPT2LMHeadModel(config).save_pretrained(tmp_path)
    make_tokenizer().save_pretrained(tmp_path)
    together = LocalLM(str(tmp_path)).option_logps(PROMPTS, TEN)
    alone = torch.cat([LocalLM(str(tmp_path)).option_logps([prompt], TEN) for prompt in PROMPTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    expected = [by_hand(tmp_path, "ab=", option) for option in TEN[1:]]
    assert together[0, 1:].tolist() == pytest.approx(expected, abs=1e-5)


def test_options_of_any_length_are_disjoint(tmp_path):
    options = ("a", "ab", "abc", "abd", "b", "ba")
    logps = LocalLM(write_judge(tmp_path, make_tokenizer())).option_logps(["j="], options)[0].exp()
    p = dict(zip(options, [math.exp(by_hand(tmp_path, "j=", option)) for option in options], strict=True))
    expected = [p["a"] - p["ab"], p["ab"] - p["abc"] - p["abd"], p["abc"], p["abd"], p["b"] - p["ba"], p["ba"]]
    assert logps.tolist() == pytest.approx(expected, abs=1e-6)


def test_ten_does_not_belong_to_one():
    p = exclusive_logps([math.log(0.9), math.log(0.88), math.log(0.05)], [(4,), (4, 3), (5,)]).exp()
    assert p.tolist() == pytest.approx([0.02, 0.88, 0.05], abs=1e-6)
    assert exclusive_logps([math.log(0.9), math.log(0.88)], [(4,), (7,)]).exp().tolist() == pytest.approx([0.9, 0.88], abs=1e-6)
    assert exclusive_logps([0.0, 0.0], [(4,), (4, 3)]).tolist() == [-math.inf, 0.0]  # certainly 10
    assert exclusive_logps([-math.inf, -math.inf], [(4,), (4, 3)]).tolist() == [-math.inf, -math.inf]


def test_prompt_and_option_are_tokenised_together():
    assert suffixes([5, 6, 9], [[5, 6, 91], [5, 6, 92]], "12", None, None) == ([5, 6], [(91,), (92,)])  # "Score: " and "7"
    assert suffixes([5, 6, 1], [[5, 6, 7, 1], [5, 6, 8, 1]], "12", None, 1) == ([5, 6], [(7,), (8,)])  # EOS behind everything
    assert suffixes([5, 6, 1], [[5, 6, 1, 7], [5, 6, 1, 8]], "12", None, 1) == ([5, 6, 1], [(7,), (8,)])  # EOS of the prompt's own
    assert suffixes([], [[7], [8]], "12", 2, 1) == ([2], [(7,), (8,)])


def test_messages_go_through_the_template_and_texts_do_not(tmp_path):
    judge = LocalLM(write_judge(tmp_path, make_tokenizer(chat_template=CHAT)))
    chat = judge.option_logps([({"role": "user", "content": "ab"},)], TEN)
    assert chat[0, 1].item() == pytest.approx(by_hand(tmp_path, "ab<eos>:", "2"), abs=1e-5)
    text = judge.option_logps(["ab"], TEN)
    assert text[0, 1].item() == pytest.approx(by_hand(tmp_path, "ab", "2"), abs=1e-5)


def test_without_a_template_the_contents_are_read(tmp_path):
    judge = LocalLM(write_judge(tmp_path, make_tokenizer()))
    chat = judge.option_logps([({"role": "user", "content": "ab"}, {"role": "user", "content": "c"})], TEN)
    assert chat[0, 1].item() == pytest.approx(by_hand(tmp_path, "abc", "2"), abs=1e-5)  # this tokenizer knows no line breaks


def test_the_template_hears_its_arguments(tmp_path):
    template = CHAT.replace("%}:{%", "%}{{ '|' if thinking else '=' }}{%")
    folder = write_judge(tmp_path, make_tokenizer(chat_template=template))
    messages = [({"role": "user", "content": "ab"},)]
    for thinking, end in ((True, "|"), (False, "=")):
        found = LocalLM(folder, template_options={"thinking": thinking}).option_logps(messages, TEN)
        assert found[0, 1].item() == pytest.approx(by_hand(tmp_path, f"ab<eos>{end}", "2"), abs=1e-5)


def test_a_prompt_that_does_not_fit_gets_no_verdict(judge):
    model = LocalLM(judge, max_tokens=6)
    with pytest.warns(UserWarning, match="at most 6 tokens, but 1 of a batch are longer"):
        logps = model.option_logps(PROMPTS, TEN)
    assert logps.isnan().all(-1).tolist() == [False, True, False, False]
    assert not logps[[0, 2, 3]].isnan().any()
    assert model.too_long == 1


def test_one_row_serves_all_options(judge):
    model = LocalLM(judge)
    model.option_logps(["abc="], TEN)
    assert model.tokens_read == (5 if "split" in judge else 4)  # "1" is read once, for the "0" of "10"


def test_the_trainers_precision_is_not_the_judges(judge):
    exact = LocalLM(judge).option_logps(PROMPTS, TEN)
    for precision in (MixedPrecision("bf16-mixed", "cpu"), HalfPrecision("bf16-true")):
        with precision.forward_context():
            assert torch.equal(LocalLM(judge).option_logps(PROMPTS, TEN), exact)


def test_a_tokenizer_that_knows_no_digits_is_refused(tmp_path):
    judge = LocalLM(write_judge(tmp_path, make_tokenizer(characters="abc=")))
    with pytest.raises(UserError, match=r"tells the options of a judge apart, but it reads '1' as \[\], '2' as \[\]"):
        judge.option_logps(["ab="], ("1", "2"))


def test_a_model_that_cannot_speak_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"causal language model at .* lack lm_head\.weight"):
        LocalLM(write_reward_model(tmp_path)).setup(torch.device("cpu"))
    with pytest.raises(UserError, match="LocalLM: no model at 'nowhere'"):
        LocalLM("nowhere").setup(torch.device("cpu"))
