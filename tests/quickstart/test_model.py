"""The folder that the quickstart starts from, as any Hugging Face program would load it."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align.quickstart.model import make_initial_policy
from lit_align.quickstart.world import demonstrations, prompts

DEMONSTRATIONS = demonstrations(0, 2000)
TEXTS = [text for d in DEMONSTRATIONS for text in (str(d.prompt.content), d.response)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("policy")
    make_initial_policy(folder, TEXTS, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_the_policy_is_small_and_starts_wide(model):
    assert 200_000 < model.num_parameters() <= 3_000_000
    assert model.model.layers[0].self_attn.q_proj.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert model.get_input_embeddings().weight is model.lm_head.weight


def test_it_knows_its_own_end_and_a_padding_that_is_not_the_end(model, tokenizer):
    assert tokenizer.eos_token_id is not None
    assert tokenizer.pad_token_id is not None
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
    assert (model.config.eos_token_id, model.config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode([*tokenizer("Good luck!").input_ids, tokenizer.eos_token_id], skip_special_tokens=True) == "Good luck!"


@pytest.mark.parametrize("text", [TEXTS[0], TEXTS[1], "Ünïcode, 日本語 🙂", " two  spaces\n\nand lines ", "<eos> is not in a letter"[6:]])
def test_every_text_survives_the_tokenizer(tokenizer, text):
    tokens = tokenizer(text).input_ids
    assert tokenizer.decode(tokens) == text
    assert not {tokenizer.eos_token_id, tokenizer.pad_token_id} & set(tokens)


def test_the_world_is_read_in_whole_words(tokenizer):
    unseen = [str(p.content) for p in prompts(9, 200, held_out=True)]
    words = sum(len(text.split()) for text in unseen)
    assert sum(len(tokens) for tokens in tokenizer(unseen).input_ids) < 1.4 * words  # one per word, full stop, line break


def test_an_answer_has_the_same_tokens_alone_and_after_its_letter(tokenizer):
    for d in DEMONSTRATIONS[:100]:
        letter = str(d.prompt.content)
        assert tokenizer(letter + d.response).input_ids == tokenizer(letter).input_ids + tokenizer(d.response).input_ids


def test_letter_and_answer_fit_the_context(model, tokenizer):
    longest = max(len(tokenizer(str(d.prompt.content) + d.response).input_ids) for d in DEMONSTRATIONS)
    assert longest + 64 < model.config.max_position_embeddings


def test_untrained_it_has_no_opinion_worth_a_lot_and_gradients_reach_every_weight(model, tokenizer):
    tokens = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    loss = model(input_ids=tokens, labels=tokens).loss
    loss.backward()
    assert loss.item() > 0.8 * math.log(len(tokenizer))
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in model.parameters())


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone(tmp_path, model):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name, seed in (("same", 0), ("other", 1)):
        make_initial_policy(tmp_path / name, TEXTS, seed)
    assert torch.equal(torch.get_rng_state(), before)
    same, other = (AutoModelForCausalLM.from_pretrained(tmp_path / name).state_dict() for name in ("same", "other"))
    weight = "model.layers.0.mlp.up_proj.weight"
    assert torch.equal(same[weight], model.state_dict()[weight])
    assert not torch.equal(other[weight], model.state_dict()[weight])
