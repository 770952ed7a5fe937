"""What is measured: a model of a real shape with random weights, and a batch of forced lengths."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.vs_trl.world import make_tokenizer

Algorithm = Literal["rloo", "online_dpo"]
RESPONSES: dict[Algorithm, int] = {"rloo": 8, "online_dpo": 2}  # to a prompt


@dataclass(frozen=True)
class Shape:
    """A Qwen2, and whether all of it is trained or an adapter."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    tied: bool
    lora: bool
    vocabulary: int = 151936


SHAPES = {
    "0.5b": Shape(896, 4864, 24, 14, 2, tied=True, lora=False),
    "7b": Shape(3584, 18944, 28, 28, 4, tied=False, lora=True, vocabulary=152064),
    "toy": Shape(32, 64, 2, 2, 1, tied=True, lora=True, vocabulary=512),
}


@dataclass(frozen=True)
class Case:
    """One measurement.

    Args:
        size: a key of `SHAPES`.
        sequences: of a rollout and an optimizer step.
        tokens: of every response.
        prompt_tokens: letters of every prompt.
        micro_batch: sequences of one forward in training.
        repeats: how often each part is timed at most, after once that is not.
        limit: seconds after which no part begins another repetition, all parts together.
        end: seconds after which the run is broken off, with what it has found.
        flops: peak a second in bfloat16.
        bandwidth: bytes a second.
    """

    size: str = "0.5b"
    sequences: int = 128
    tokens: int = 512
    prompt_tokens: int = 128
    micro_batch: int = 8
    repeats: int = 3
    limit: float = 420.0
    end: float = 530.0
    flops: float = 989e12
    bandwidth: float = 4.8e12

    @property
    def shape(self) -> Shape:
        """Of the model."""
        return SHAPES[self.size]

    def texts(self, algorithm: Algorithm) -> list[str]:
        """Prompts of a rollout."""
        return [chr(97 + i % 26) * self.prompt_tokens for i in range(self.sequences // RESPONSES[algorithm])]


TOY = Case(size="toy", sequences=16, tokens=8, prompt_tokens=8, repeats=2)


def write_model(folder: Path, shape: Shape, context: int, device: torch.device, dtype: torch.dtype, spread: float = 0.02) -> None:
    """Random weights of standard deviation ``spread``, made where they are made fastest, and a tokenizer of letters."""
    tokenizer = make_tokenizer(["a letter or two"])
    config = Qwen2Config(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=context,
        tie_word_embeddings=shape.tied,
        initializer_range=spread,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
