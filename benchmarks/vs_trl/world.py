"""The model that both sides train, and the texts they train on.

Models are small Llamas, trained on real stories for a minute or a few, for one reason: that responses end by themselves and at
different lengths, as those of a real policy do. The end of sequence comes after each token with the same probability, so that of
responses of at most 64 tokens a third is cut off and the mean is 40.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.stories import data_folder
from benchmarks.vs_trl.case import Case
from lit_align.types import Prompt, UserError

VOCABULARY, CONTEXT, MEAN_LENGTH = 8192, 1024, 55
FOLDER = Path("runs/bench/models")


@dataclass(frozen=True)
class Recipe:
    """A Llama and how long it is trained."""

    hidden: int
    layers: int
    steps: int


SIZES = {"1m": Recipe(96, 2, 120), "5m": Recipe(256, 4, 80), "12m": Recipe(384, 5, 80), "25m": Recipe(512, 7, 60)}
ROWS, WINDOW, PEAK_RATE = 12, 96, 3e-3  # of a training step


@dataclass(frozen=True)
class World:
    """A folder with model and tokenizer, the prompts of every step, and two answers to each that nobody sampled."""

    model: str
    prompts: list[str]
    answers: list[tuple[str, str]]


def stories() -> list[str]:
    """Real texts."""
    lines = (data_folder() / "tinystories" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def make_world(case: Case, texts: Sequence[str]) -> World:
    """The beginning of a story is the prompt; what follows in it, and in another one, are the answers."""
    folder = str(model_folder(case.model, texts))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    draw = random.Random(0)
    read = [tokenizer(text)["input_ids"] for text in texts]
    needed = case.prompt_tokens + case.response_tokens
    long = [tokens for tokens in read if len(tokens) > needed] or [tokens * (1 + needed // len(tokens)) for tokens in read]
    prompts, answers = dict[str, None](), list[tuple[str, str]]()
    while len(prompts) < case.prompts:
        one, other = draw.choice(long), draw.choice(long)
        cut = _word_start(tokenizer, one, draw.randint(max(case.prompt_tokens // 4, 1), case.prompt_tokens))
        lengths = [case.response_tokens if case.forced else _length(draw, case.response_tokens) for _ in range(2)]
        prompt = tokenizer.decode(one[:cut])
        if prompt not in prompts:
            prompts[prompt] = None
            start = _word_start(tokenizer, other, draw.randrange(1, len(other) - lengths[1]))
            answers.append((tokenizer.decode(one[cut : cut + lengths[0]]), tokenizer.decode(other[start : start + lengths[1]])))
    return World(folder, list(prompts), answers)


def model_folder(model: str, texts: Sequence[str]) -> Path:
    """Where the model is, which is made if it is one of `SIZES` and was not made before.

    Raises:
        UserError: if there is no such model.
    """
    if model not in SIZES:
        if not (Path(model) / "config.json").is_file():
            raise UserError(f"--model should be one of {', '.join(SIZES)}, or a folder with a Hugging Face model, got {model!r}.")
        return Path(model)
    folder = FOLDER / model
    if not (folder / "config.json").is_file():
        print(f"Training the {model} model for {SIZES[model].steps} steps; it stays in {folder}.", flush=True)
        train(folder, SIZES[model], texts)
    return folder


def weights_hash(folder: str) -> str:
    """The beginning of the SHA-256 of the weights."""
    return hashlib.sha256((Path(folder) / "model.safetensors").read_bytes()).hexdigest()[:12]


def rule(prompt: Prompt | str, responses: Sequence[str]) -> list[float]:
    """A reward that costs nothing and that no two texts share."""
    return [2 * math.sin(sum((i + 1) * ord(letter) for i, letter in enumerate(text))) for text in responses]


def train(folder: Path, recipe: Recipe, texts: Sequence[str]) -> None:
    """A tokenizer and a model of ``texts`` in ``folder``."""
    torch.manual_seed(0)
    tokenizer, heads = make_tokenizer(texts), recipe.hidden // 32
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=recipe.hidden,
        intermediate_size=recipe.hidden * 11 // 4,
        num_hidden_layers=recipe.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2 or 1,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK_RATE, total_steps=recipe.steps)
    for step, rows in enumerate(windows(tokenizer, texts, recipe.steps)):
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 20 == 19:
            print(f"step {step + 1} of {recipe.steps}: {loss.item():.2f} nats a token", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE of exactly so many tokens as the models have, or as many as ``texts`` give."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def windows(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], steps: int) -> Iterator[torch.Tensor]:
    """Rows ``[ROWS, WINDOW]`` of all texts one after the other, with an end put after one token in `MEAN_LENGTH`."""
    draw, stream = random.Random(0), list[int]()
    for tokens in tokenizer(list(texts))["input_ids"]:
        for token in tokens:
            stream += [token, tokenizer.eos_token_id] if draw.random() < 1 / MEAN_LENGTH else [token]
    for _ in range(steps):
        starts = [draw.randrange(len(stream) - WINDOW) for _ in range(ROWS)]
        yield torch.tensor([stream[start : start + WINDOW] for start in starts])


def _word_start(tokenizer: PreTrainedTokenizerFast, tokens: Sequence[int], place: int) -> int:
    """Where a word starts, but not the first: the last at ``place`` or before, else the next.

    Inside a word a prompt and its answer would be read as other tokens together than apart, and the two sides differ there.
    """
    places = chain(range(place, 0, -1), range(place, len(tokens)))
    starts = (i for i in places if tokenizer.convert_ids_to_tokens(tokens[i])[0] in "Ġ▁ ")
    return next(starts, place)


def _length(draw: random.Random, longest: int) -> int:
    """Of an answer that ends as the model's own do; one token of the longest is the end."""
    return max(min(round(draw.expovariate(1 / MEAN_LENGTH)), longest - 1), 1)
