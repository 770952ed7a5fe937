"""One tiny random model of every family that keeps positions, masks or a cache in a way of its own, with windows that texts cross."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.tiny import write_tiny

TOKENS = {"vocab_size": 14, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}  # write_tiny's tokenizer
LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 4, "mamba_expand": 2, "mamba_chunk_size": 8}

# Name -> model type and config.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", LLAMA),
    "qwen2": ("qwen2", LLAMA),
    "qwen2, a window": ("qwen2", LLAMA | {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}),
    "qwen3": ("qwen3", LLAMA),
    "gpt2": ("gpt2", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "initializer_range": 0.3} | NO_DROPOUT),
    "llama4, chunks": (
        "llama4_text",
        LLAMA
        | {"intermediate_size_mlp": 32, "num_local_experts": 2, "moe_layers": [], "no_rope_layers": [1, 0]}
        | {"layer_types": ["chunked_attention", "full_attention"], "attention_chunk_size": 5},
    ),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.3}
        | {"attention_types": [[["global", "local"], 1]], "window_size": 5},
    ),
    "mistral, a window": ("mistral", LLAMA | {"sliding_window": 5}),
    "mistral": ("mistral", LLAMA | {"sliding_window": None}),
    "granite": (
        "granite",
        LLAMA | {"embedding_multiplier": 2.0, "residual_multiplier": 0.5, "attention_multiplier": 0.5, "logits_scaling": 2.0},
    ),
    "gemma2": ("gemma2", LLAMA | {"sliding_window": 5}),
    "gemma3": ("gemma3_text", LLAMA | {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"]}),
    "phi3": ("phi3", LLAMA | {"sliding_window": 7}),
    "opt": (
        "opt",
        {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 64}
        | {"word_embed_proj_dim": 16, "init_std": 0.3, "dropout": 0.0},
    ),
    "mixtral": ("mixtral", LLAMA | EXPERTS),
    "gpt_neox": ("gpt_neox", LLAMA | {"initializer_range": 0.2}),
    "gpt_oss": ("gpt_oss", LLAMA | EXPERTS | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"]}),
    "cohere2": ("cohere2", LLAMA | {"sliding_window": 6, "layer_types": ["sliding_attention", "full_attention"], "logit_scale": 0.5}),
    "bloom": ("bloom", {"hidden_size": 16, "n_layer": 2, "n_head": 2, "initializer_range": 0.3}),
    "mpt": ("mpt", {"d_model": 16, "n_heads": 2, "n_layers": 2, "max_seq_len": 64, "initializer_range": 0.3}),
    "falcon": ("falcon", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}),
    "falcon, alibi": (
        "falcon",
        {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3, "alibi": True},
    ),
    "mamba": ("mamba", {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "initializer_range": 0.2}),
    "mamba2": (
        "mamba2",
        {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
        | {"initializer_range": 0.3},
    ),
    "bamba": ("bamba", LLAMA | MAMBA | {"attn_layer_indices": [1]}),
    "falcon_h1": ("falcon_h1", LLAMA | MAMBA | {"mamba_d_ssm": 32, "lm_head_multiplier": 0.5}),
    "jamba": (
        "jamba",
        LLAMA | {"num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1, "mamba_d_state": 4, "use_mamba_kernels": False},
    ),
    "lfm2": ("lfm2", LLAMA | {"layer_types": ["conv", "full_attention"], "block_multiple_of": 8}),
    "qwen3_next": (
        "qwen3_next",
        LLAMA
        | {"layer_types": ["linear_attention", "full_attention"], "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
        | {"shared_expert_intermediate_size": 16, "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
        | {"linear_num_value_heads": 2},
    ),
    "recurrent_gemma": (
        "recurrent_gemma",
        {"hidden_size": 16, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 2, "lru_width": 16}
        | {"attention_window_size": 6, "w_init_variance_scale": 1.0},
    ),
}

# How they are sampled, where it isn't by `PaddedRows`; what LoRA changes, where it can't be every linear layer; which are trained on in
# fewer layouts than all.
WAYS = {**dict.fromkeys(["llama", "qwen2", "qwen3", "mistral"], "FusedRows"), "mamba": "PromptMaskedRows", "recurrent_gemma": "RereadRows"}
TARGETS = {
    "mamba": ["x_proj"],
    "mamba2": ["in_proj"],
    "falcon_h1": ["in_proj"],
    "mixtral": ["q_proj", "v_proj"],  # of all-linear peft warns: it finds no experts
    "qwen3_next": ["q_proj", "v_proj"],
}
LAYOUTS = {
    **dict.fromkeys(["bloom", "mpt", "falcon, alibi", "bamba", "falcon_h1", "lfm2", "gpt_neo", "llama4, chunks"], ("rows", "prefix")),
    **dict.fromkeys(["mamba", "mamba2", "jamba", "qwen3_next", "recurrent_gemma"], ("rows",)),
}

OTHERS: dict[str, tuple[str, dict[str, Any]]] = {"rwkv": ("rwkv", {"hidden_size": 16, "num_hidden_layers": 2, "context_length": 64})}
REFUSED = {"rwkv": "RwkvForCausalLM takes no `past_key_values` or `cache_params`"}


def write_family(folder: Path, name: str, seed: int = 1) -> str:
    """A Hugging Face folder with a random model of the family and `write_tiny`'s tokenizer."""
    path = write_tiny(folder)
    kind, options = (FAMILIES | OTHERS)[name]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **TOKENS, **options))
    for parameter in model.parameters():  # biases and the padding token's embedding begin at 0, and would hide what is wrong with them
        parameter.data = torch.where(parameter == 0, 0.2 * torch.randn_like(parameter), parameter)
    model.save_pretrained(path)
    return path
