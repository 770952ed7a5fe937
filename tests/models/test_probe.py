"""What a model can't do exactly is found out, whatever it is that it does instead; nothing of the model is left changed."""

import copy

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.testing import assert_close
from transformers import LlamaForCausalLM

from lit_align.data import ListPrompts
from lit_align.models import CausalPolicy, LoRA, trees
from lit_align.models import policy as policy_file
from lit_align.models.decoding import PaddedRows
from lit_align.models.probe import probe
from lit_align.models.reading import CHUNKED, PICKED
from lit_align.types import UserError
from tests.models.batches import as_batch, make_rollouts
from tests.models.families import FAMILIES, LLAMA, write_family
from tests.tiny import PROMPTS, make_dar, make_data, make_trainer, write_tiny

BATCH = as_batch(make_rollouts([[2, 5], [7]], [[[5, 6, 1], [1]], [[3, 4, 5], [9, 1]]], 0))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("probe"), dropout=0.3)


class Deaf(LlamaForCausalLM):
    """Takes a mask of four axes and does without it."""

    def forward(self, attention_mask=None, **options):
        ignored = attention_mask is not None and attention_mask.dim() == 4
        return super().forward(attention_mask=None if ignored else attention_mask, **options)


class Forgetful(LlamaForCausalLM):
    """Says that it takes a cache."""

    def forward(self, past_key_values=None, position_ids=None, **options):
        if past_key_values is not None:
            return super().forward(options["input_ids"])
        return super().forward(position_ids=position_ids, **options)


class Detached(LlamaForCausalLM):
    """Right numbers with a cache, but the gradient does not reach what is in it."""

    def forward(self, past_key_values=None, position_ids=None, **options):
        for layer in past_key_values.layers if past_key_values is not None and past_key_values.get_seq_length() else []:
            layer.keys, layer.values = layer.keys.detach(), layer.values.detach()
        return super().forward(past_key_values=past_key_values, position_ids=position_ids, **options)


class Halved(LlamaForCausalLM):
    """Right numbers with a cache, and half of the gradient at what is in it."""

    def forward(self, past_key_values=None, position_ids=None, **options):
        for layer in past_key_values.layers if past_key_values is not None and past_key_values.get_seq_length() else []:
            layer.keys, layer.values = ((x + x.detach()) / 2 for x in (layer.keys, layer.values))
        return super().forward(past_key_values=past_key_values, position_ids=position_ids, **options)


class Headless(LlamaForCausalLM):
    """Multiplies by the head's matrix without calling the head."""

    def forward(self, **options):
        output = self.model(**options)
        output.logits = output.last_hidden_state @ self.lm_head.weight.T
        return output


class Scaled(LlamaForCausalLM):
    """Does something to its logits that no config tells."""

    def forward(self, position_ids=None, **options):
        output = super().forward(position_ids=position_ids, **options)
        output.logits = output.logits * 0.5
        return output


class Hindsight(LlamaForCausalLM):
    """Every token sees a little of the last one of its row."""

    def forward(self, **options):
        output = super().forward(**options)
        output.logits = output.logits + 0.1 * output.logits[:, -1:]
        return output


class Remembering(LlamaForCausalLM):
    """Every forward depends on how many there were."""

    def forward(self, **options):
        self.count = getattr(self, "count", 0) + 1
        output = super().forward(**options)
        output.logits = output.logits * (1 + 0.01 * self.count)
        return output


FOUND = {
    Deaf: ("rows", "prefix", PICKED, CHUNKED),
    Forgetful: ("rows", "tree", PICKED, CHUNKED),
    Detached: ("rows", "tree", PICKED, CHUNKED),
    Halved: ("rows", "tree", PICKED, CHUNKED),
    Scaled: ("rows", "prefix", "tree", PICKED),
    Headless: ("rows",),
}


@pytest.mark.parametrize("kind", FOUND)
def test_an_odd_model_is_read_as_it_can_be(kind, folder):
    policy = CausalPolicy(folder)
    policy.model.__class__ = kind
    policy.choose_layouts()
    assert policy.layouts == FOUND[kind]
    with policy.inference():
        for i, k in [(0, 0), (0, 1), (1, 0), (1, 1)]:
            response = BATCH.response_tokens[i, k][BATCH.response_mask[i, k]]
            prompt = BATCH.prompt_tokens[i][BATCH.prompt_mask[i]]
            logits = policy.model(input_ids=torch.cat([prompt, response])[None]).logits[0, len(prompt) - 1 : -1]
            expected = logits.log_softmax(-1)[range(len(response)), response]
            assert_close(policy(BATCH).token_logps[i, k, : len(response)], expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", [Hindsight, Remembering])
def test_a_model_that_nothing_serves_is_refused(kind, folder):
    policy = CausalPolicy(folder)
    policy.model.__class__ = kind
    with pytest.raises(UserError, match=rf"{kind.__name__} says something else of texts in padded rows than of each text alone"):
        policy.choose_layouts()
    assert policy.layouts == ()


@pytest.mark.parametrize("strategy", ["fsdp2", "zero3"])
def test_neither_cache_nor_chunks_are_tried_where_weights_are_gathered(strategy, folder):
    """The backward pass would fail, and leave the weights' holder between two states."""
    model, caches = CausalPolicy(folder).model, []
    model.register_forward_pre_hook(lambda *call: caches.append(call[2].get("past_key_values")), with_kwargs=True)
    if strategy == "fsdp2":
        model.__class__ = type("Sharded", (FSDPModule, LlamaForCausalLM), {})
    else:
        model.lm_head.weight.ds_id = 0
    assert probe(model, 64) == ("rows", "tree", PICKED)
    assert set(caches) == {None}


@pytest.mark.parametrize("window", [5, 60])
def test_a_tree_without_its_window_is_found_out(window, tmp_path, monkeypatch):
    """Also of a window that only a copy's texts cross."""
    options = LLAMA | {"max_position_embeddings": 99, "sliding_window": window}
    monkeypatch.setitem(FAMILIES, "windowed", ("mistral", options))
    model = CausalPolicy(write_family(tmp_path, "windowed")).model
    assert "tree" in probe(model, 99)
    monkeypatch.setattr(trees, "sliding_window", lambda config: None)
    assert "tree" not in probe(model, 99)
    assert "prefix" in probe(model, 99)


@pytest.mark.parametrize(("window", "tree"), [(5, False), (60, False), (99, True)])
def test_a_window_that_a_layer_counts_in_slots_is_found_out(window, tree, tmp_path, monkeypatch):
    """Whatever it is called, and whichever layers have it: rows of more slots than it lose the prompt of a later branch."""
    kind, options = FAMILIES["gpt_neo"]
    layers = {"num_layers": 4, "attention_types": [[["global"], 2], [["local"], 2]]}
    monkeypatch.setitem(FAMILIES, "slots", (kind, options | layers | {"max_position_embeddings": 99, "window_size": window}))
    model = CausalPolicy(write_family(tmp_path, "slots")).model
    assert probe(model, 99) == ("rows", "prefix", *["tree"] * tree, PICKED, CHUNKED)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_left_changed(dtype, folder):
    policy = CausalPolicy(folder, dtype=dtype, lora=LoRA(rank=2, dropout=0.2))
    policy.model.model.layers[0].eval()
    before, random = copy.deepcopy(policy.state_dict()), torch.get_rng_state()
    policy.choose_layouts()
    assert policy.layouts == ("rows", "prefix", "tree", PICKED, CHUNKED)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())
    assert all(parameter.grad is None for parameter in policy.parameters())
    assert [layer.training for layer in policy.model.model.layers] == [False, True]
    attention = policy.model.model.layers[1].self_attn
    assert attention.attention_dropout == 0.3
    assert {module.p for module in policy.modules() if isinstance(module, nn.Dropout)} == {0.2}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in policy.modules())


def test_a_short_context_is_kept_to(tmp_path):
    """By all that a row holds, not by positions alone."""
    slots = []
    policy = CausalPolicy(write_tiny(tmp_path, context=8))
    handle = policy.model.register_forward_pre_hook(lambda *call: slots.append(call[2]["input_ids"].shape[1]), with_kwargs=True)
    policy.choose_layouts()
    handle.remove()
    assert "tree" in policy.layouts
    assert max(slots) == 8


def test_a_run_says_once_what_it_chose_and_a_resumed_one_keeps_it(folder, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(policy_file, "rank_zero_info", said.append)
    module, trainer = make_dar(folder), make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module, make_data())
    assert module.policy.layouts == ("rows", "prefix", "tree", PICKED, CHUNKED)
    assert module.reference.policy.layouts == module.policy.layouts
    trained, sampled = said
    assert sampled.startswith("Samples of LlamaForCausalLM are drawn by `FusedRows`")
    assert trained.startswith("LlamaForCausalLM is trained in padded rows or prompts read once into a cache or rows of prompts")
    module.policy.layouts, module.policy.decoding = ("rows", PICKED), "PaddedRows"  # as if an earlier version had found less
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    again = make_dar(folder)
    make_trainer(tmp_path, max_epochs=2).fit(again, make_data(), ckpt_path=tmp_path / "saved.ckpt")
    assert again.policy.layouts == ("rows", PICKED)
    assert again.policy.way is PaddedRows
    assert sum("by `PaddedRows`, as the run began" in words for words in said) == 1
    other = make_dar(folder)
    other.policy = CausalPolicy(folder, gradient_checkpointing=True)
    module.policy.layouts = ("rows", "prefix", PICKED)  # with checkpointing a mistake
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    make_trainer(tmp_path, max_epochs=2).fit(other, make_data(), ckpt_path=tmp_path / "saved.ckpt")
    assert other.policy.layouts == ("rows", "tree", PICKED, CHUNKED)
    evaluated = make_dar(folder)
    held_out = make_data(eval_prompts=ListPrompts(PROMPTS[:2], name="held out"))
    make_trainer(tmp_path).validate(evaluated, held_out, ckpt_path=tmp_path / "saved.ckpt", verbose=False)
    assert evaluated.policy.layouts == (), "of another machine perhaps, and with settings that nobody tried"
