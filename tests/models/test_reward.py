"""A network that scores: what it reads, what it may be made of, what it leaves behind."""

import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification, AutoTokenizer, LlamaForSequenceClassification

from lit_align.annotators import RewardModelAnnotator
from lit_align.models import RewardNetwork
from lit_align.types import Prompt, UserError
from tests.annotators.worlds import CHAT, llama_config, make_tokenizer, rollouts
from tests.tiny import write_tiny

TEXTS = [["a", "abc abc", ""], ["jihgfedcba", "b", "cc"]]
PLAIN = ["ab", "c"]
CHATS = [({"role": "user", "content": prompt},) for prompt in PLAIN]


def scored(network: RewardNetwork, prompts: list, texts: list[list[str]]) -> torch.Tensor:
    """All rows in one forward, ``[B, K]``."""
    rows = [network.encode_response(Prompt(0, p), text) for p, mine in zip(prompts, texts, strict=True) for text in mine]
    width = max(map(len, rows))
    tokens = torch.tensor([row + [3] * (width - len(row)) for row in rows])  # padded with a token that means something
    mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows])
    with network.inference():
        return network(tokens, mask).view(len(prompts), -1)


@pytest.mark.parametrize("prompts", [PLAIN, CHATS], ids=["plain", "chat"])
@pytest.mark.parametrize("pad", ["<pad>", "<eos>", None])
def test_the_annotator_gives_the_same_scores(prompts, pad, tmp_path):
    folder = write_tiny(tmp_path / "policy")
    make_tokenizer(pad=pad, chat_template=CHAT).save_pretrained(folder)
    network = RewardNetwork(folder, seed=3)
    network.save(str(tmp_path / "saved"))
    found = scored(network, prompts, TEXTS)
    annotation = RewardModelAnnotator(str(tmp_path / "saved"), batch_size=2).annotate(rollouts(TEXTS, prompts))
    assert annotation.valid.all()
    assert_close(annotation.scores, found, atol=1e-5, rtol=0)
    assert found.std() > 1e-3
    again = scored(RewardNetwork(str(tmp_path / "saved")), prompts, TEXTS)  # a classifier now: nothing is drawn
    assert_close(again, found, atol=1e-5, rtol=0)


def test_a_new_head_is_drawn_with_its_seed_and_nothing_else_is(tmp_path):
    folder, before = write_tiny(tmp_path), torch.get_rng_state()
    first, same, other = (RewardNetwork(folder, seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert {name for name in first if not torch.equal(first[name], same[name])} == set()
    assert {name for name in first if not torch.equal(first[name], other[name])} == {"score.weight"}


def test_the_folder_is_one_that_anybody_can_batch(tmp_path):
    """Also where the tokenizer had no pad token: BOS, with which no row ends."""
    folder = write_tiny(tmp_path / "policy", pad=False)
    network = RewardNetwork(folder)
    network.save(str(tmp_path / "saved"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "saved")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    assert (tokenizer.pad_token, model.config.pad_token_id, model.config.num_labels) == ("<bos>", 2, 1)
    rows = tokenizer(["ab", "abcd"], padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    assert_close(logits.view(1, 2), scored(network, [""], [["ab", "abcd"]]), atol=1e-5, rtol=0)


def test_a_row_is_all_of_it_and_a_prompt_alone_nothing(tmp_path):
    network = RewardNetwork(write_tiny(tmp_path, context=32))
    assert network.encode(Prompt(0, "abc")) == network.encode(Prompt(0, "a" * 100)) == [network.pad_id]
    assert network.context_length == 33
    assert network.encode_response(Prompt(0, "ab"), "c") == network.tokenizer("abc")["input_ids"]
    with pytest.raises(UserError, match="the answer to the text 'ab' is a list of 1 messages"):
        network.encode_turns(Prompt(0, "ab"), [{"role": "assistant", "content": "c"}])


def test_turns_are_read_as_the_template_writes_them(tmp_path):
    folder = write_tiny(tmp_path)
    make_tokenizer(chat_template=CHAT).save_pretrained(folder)
    network = RewardNetwork(folder)
    turns = [{"role": role, "content": text} for role, text in (("assistant", "c"), ("user", "d"), ("assistant", "e"))]
    tokens, learnt = network.encode_turns(Prompt(0, CHATS[0]), turns)
    assert tokens == network.tokenizer("ab<eos>c<eos>d<eos>e<eos>", add_special_tokens=False)["input_ids"]
    assert learnt == [True] * len(tokens)
    assert network.encode_turns(Prompt(0, CHATS[0]), turns[:1])[0] == network.encode_response(Prompt(0, CHATS[0]), "c")


def test_what_can_not_be_scored_with_is_refused(tmp_path):
    with pytest.raises(UserError, match="network: no model at"):
        RewardNetwork(str(tmp_path / "nothing"))
    two = tmp_path / "two"
    LlamaForSequenceClassification(llama_config(num_labels=2)).save_pretrained(two)
    make_tokenizer().save_pretrained(two)
    with pytest.raises(UserError, match=r"network expected a classifier with one logit, but .* has 2: .*num_labels = 1"):
        RewardNetwork(str(two))
    headless = tmp_path / "headless"
    LlamaForSequenceClassification(llama_config(num_labels=1)).model.save_pretrained(headless)
    make_tokenizer().save_pretrained(headless)
    config = json.loads((headless / "config.json").read_text(encoding="utf-8"))
    RewardNetwork(str(headless))  # a backbone without any head will do
    config["num_hidden_layers"] += 1
    (headless / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"or a model to put a new head on, .* its weights lack model\.layers\.2"):
        RewardNetwork(str(headless))


def test_dropout_is_for_training_alone(tmp_path):
    network = RewardNetwork(write_tiny(Path(tmp_path), dropout=0.5))
    tokens, mask = torch.tensor([[5, 6, 7]]), torch.ones(1, 3, dtype=torch.bool)
    with network.inference():
        assert torch.equal(network(tokens, mask), network(tokens, mask))
    assert not torch.equal(network(tokens, mask), network(tokens, mask))
