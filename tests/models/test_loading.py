"""One loader for policies and annotators: what it refuses is the same for all of them."""

import pytest
import torch
from transformers import AutoConfig, LlamaForSequenceClassification

from lit_align.annotators import LocalLM, RewardModelAnnotator
from lit_align.models import CausalPolicy
from lit_align.types import UserError
from tests.tiny import write_tiny


def test_a_random_head_is_refused_and_a_tied_one_is_none(tmp_path):
    tied = CausalPolicy(write_tiny(tmp_path / "tied", tie_word_embeddings=True))
    assert tied.model.lm_head.weight is tied.model.model.embed_tokens.weight
    other = write_tiny(tmp_path / "other")
    config = AutoConfig.from_pretrained(other, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(other)
    with pytest.raises(
        UserError, match=r"policy expected a causal language model at .* lack lm_head\.weight: what it says would be random"
    ):
        CausalPolicy(other)
    with pytest.raises(UserError, match=r"LocalLM expected a causal language model at .* lack lm_head\.weight"):
        LocalLM(other).setup(torch.device("cpu"))
    with pytest.raises(UserError, match=r"RewardModelAnnotator expected a trained sequence classifier at .* lack score\.weight"):
        RewardModelAnnotator(str(tmp_path / "tied")).setup(torch.device("cpu"))


def test_an_annotator_may_be_the_policys_own_folder_and_finds_a_template_by_a_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("TEMPLATES", str(tmp_path))
    (tmp_path / "chat.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}a", encoding="utf-8")
    path, messages = write_tiny(tmp_path / "policy"), ({"role": "user", "content": "b"},)
    asked = LocalLM(path, chat_template="$TEMPLATES/chat.jinja").option_logps([messages], ["c", "d"])
    assert torch.equal(asked, LocalLM(path).option_logps(["ba"], ["c", "d"]))
