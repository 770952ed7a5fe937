"""A tiny world to test in: a random Llama that writes letters, data and a Trainer for it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lit_align.algorithms import DAR
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts, OnlineDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import Prompt

LETTERS = "abcdefghij "
PROMPTS = ["a", "bc", "def", "ghij", "ab cd", "j", "ih gf e", "cc", "d e f", "ba", "hg", "fed", "jiji", "ac", "eg", "bdf"]


def write_tiny(
    folder: Path, *, pad: bool = True, eos: bool = True, dropout: float = 0.0, context: int = 64, seed: int = 0, **config: Any
) -> str:
    """A two-layer Llama of random weights with a tokenizer of letters, as a Hugging Face folder.

    Without ``pad`` the tokenizer has none, so EOS serves; without ``eos`` nothing names an end of sequence.
    """
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    special = {"pad_token": "<pad>" if pad else None, "eos_token": "<eos>" if eos else None, "bos_token": "<bos>"}
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **{k: v for k, v in special.items() if v})
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": len(vocabulary),
                "hidden_size": 16,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "num_key_value_heads": 1,
                "max_position_embeddings": context,
                "initializer_range": 0.3,
                "attention_dropout": dropout,
                "bos_token_id": 2,
                "eos_token_id": 1 if eos else None,
                "pad_token_id": 0 if pad else None,
            }
            | config
        )
    )
    model.generation_config.eos_token_id = 1 if eos else None
    model.save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return str(folder)


def vowels(prompt: Prompt, responses: Sequence[str]) -> list[float]:
    """A reward that a tiny policy can raise: the share of vowels."""
    return [sum(letter in "aei" for letter in text) / max(len(text), 1) for text in responses]


def write_prompts(path: Path, prompts: Sequence[str] = PROMPTS) -> str:
    """A JSONL file of prompts."""
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")
    return str(path)


def sgd(lr: float = 0.1) -> Any:
    """Plain gradient descent."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def adamw(lr: float = 1e-2) -> Any:
    """AdamW at a rate that moves a tiny policy."""
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr)


def make_dar(folder: str, **options: Any) -> DAR:
    """DAR on a tiny policy."""
    return DAR(CausalPolicy(folder), **({"optimizer": adamw()} | options))


def make_data(**options: Any) -> OnlineDataModule:
    """Online data: 8 prompts x 4 responses of at most 8 tokens, in micro-batches of 4 prompts."""
    defaults: dict[str, Any] = {
        "prompts": ListPrompts(PROMPTS),
        "sampler": CacheSampler(max_new_tokens=8),
        "annotator": FunctionAnnotator(vowels),
        "prompts_per_rollout": 8,
        "responses_per_prompt": 4,
        "micro_batch_prompts": 4,
    }
    return OnlineDataModule(**(defaults | options))


def make_trainer(folder: Path, **options: Any) -> Trainer:
    """A quiet Trainer on one CPU process, with what an online run needs."""
    defaults: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "reload_dataloaders_every_n_epochs": 1,
        "use_distributed_sampler": False,
        "log_every_n_steps": 1,
    }
    return Trainer(**(defaults | options))
