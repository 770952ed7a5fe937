"""Models that keep positions, masks and caches in different ways see the same response twice: as sampled, and as trained on."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, BloomConfig, Gemma2Config, GPT2Config, MambaConfig, MistralConfig, OPTConfig, Qwen2Config

from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import EncodedPrompt, Prompt, Stream, UserError
from tests.models.batches import plain_logps
from tests.tiny import write_tiny

SPECIAL = {"vocab_size": 14, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
DECODER = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
OPT = {"ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64, "word_embed_proj_dim": 16}
FAMILIES = {
    "llama": None,  # write_tiny's own
    "gpt2": GPT2Config(**SPECIAL, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.3),
    "qwen2": Qwen2Config(**SPECIAL, **DECODER),
    "gemma2, a window of 5": Gemma2Config(**SPECIAL, **DECODER, head_dim=8, sliding_window=5),
    "mistral, a window of 5": MistralConfig(**SPECIAL, **DECODER, sliding_window=5),
    "opt": OPTConfig(**SPECIAL, **OPT, hidden_size=16, init_std=0.3),
    "bloom, which takes no positions": BloomConfig(**SPECIAL, hidden_size=16, n_layer=2, n_head=2, initializer_range=0.3),
}
PROMPTS = [(2, 5), (7,), (3, 4, 5, 6, 7, 8, 9, 10, 3), (2, 2, 11)]


def write_family(folder, config):
    path = write_tiny(folder)
    if config is not None:
        torch.manual_seed(1)
        AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_of_sampling_training_and_single_rows_agree(tmp_path, family):
    policy = CausalPolicy(write_family(tmp_path, FAMILIES[family]), temperature=0.7)
    prompts = [EncodedPrompt(Prompt(id=i, content=""), tokens) for i, tokens in enumerate(PROMPTS)]
    with policy.inference():
        rollouts = CacheSampler(max_new_tokens=12).sample(policy, prompts, 3, Stream(0, "train", 0))
        trained = policy(rollouts).token_logps
    mask = rollouts.response_mask
    assert_close(rollouts.sampling_logps[mask], trained[mask], atol=1e-4, rtol=0)
    assert len(set(mask.sum(-1).flatten().tolist())) > 2  # rows ended at different steps, so some were dropped on the way
    policy.eval()
    for i, tokens in enumerate(PROMPTS):
        for k in range(3):
            response = rollouts.response_tokens[i, k][mask[i, k]].tolist()
            expected = plain_logps(policy.model, tokens, response, 0.7)
            assert_close(rollouts.sampling_logps[i, k][mask[i, k]], expected, atol=1e-4, rtol=0)


def test_a_model_without_a_key_value_cache_is_refused(tmp_path):
    path = write_family(tmp_path, MambaConfig(**SPECIAL, hidden_size=16, num_hidden_layers=2, state_size=4))
    with pytest.raises(UserError, match="MambaForCausalLM takes no `past_key_values`"):
        CausalPolicy(path)
