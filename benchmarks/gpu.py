"""How fast sampling and training are on one GPU: random weights of real shapes, forced lengths, bfloat16.

    python -m benchmarks.gpu rollout --size 0.5b --sequences 128 --tokens 512
    python -m benchmarks.gpu rollout --size 7b   --sequences 128 --tokens 512
    python -m benchmarks.gpu train   --size 0.5b --sequences 32  --tokens 1024
    python -m benchmarks.gpu train   --size 7b   --sequences 16  --tokens 1024
    python -m benchmarks.gpu rollout --toy

``rollout``: `CacheSampler` beside ``generate`` of transformers, in turns, and the decode roof: what reading all weights and caches once for
a token of every sequence would allow. ``train``: an optimizer step of RLOO through Lightning's Trainer (7b: LoRA with activations
checkpointed; 0.5b: all weights, float32 under bf16-mixed), tokens a second and model FLOP utilisation: 6 FLOPs a token for each
weight that is trained, 4 for each that is frozen, recomputation not counted. TRL is not run here.

Everything is made on the spot, nothing is downloaded, and no further repetition begins after ``--limit`` seconds. Peaks of an H200 are the
defaults of ``--flops`` and ``--bandwidth``. One line of JSON goes to the output and to the end of ``runs/bench/gpu.jsonl``.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from transformers import AutoModelForCausalLM, Qwen2Config

from benchmarks.runs import BARE
from benchmarks.vs_trl.world import make_tokenizer, rule
from lit_align.algorithms import RLOO
from lit_align.annotators import FunctionAnnotator
from lit_align.data import ListPrompts, OnlineDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy, LoRA
from lit_align.types import AlignmentBatch, EncodedPrompt, Policy, Prompt, Rollouts, Sampler, Stream

RESULTS = Path("runs/bench/gpu.jsonl")
K = 8  # responses to a prompt


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
class Roof:
    """The most tokens a second that decoding can give.

    Args:
        weights: bytes that every step reads.
        cache: bytes of keys and values of one position of one sequence.
        bandwidth: bytes a second.
    """

    weights: int
    cache: int
    bandwidth: float

    def tokens_per_second(self, sequences: int, prompt: int, tokens: int) -> float:
        """With caches as long as they are half-way.

        >>> Roof(weights=100, cache=1, bandwidth=1000.0).tokens_per_second(sequences=2, prompt=20, tokens=10)
        13.333333333333334
        """
        return sequences * self.bandwidth / (self.weights + sequences * (prompt + tokens / 2) * self.cache)


def utilisation(trained: int, frozen: int, tokens: float, seconds: float, peak: float) -> float:
    """The share of ``peak`` FLOPs a second that the model's own products need, however they were computed.

    >>> utilisation(trained=1, frozen=9, tokens=10, seconds=2.0, peak=1000.0)
    0.21
    """
    return (6 * trained + 4 * frozen) * tokens / seconds / peak


def write_model(folder: Path, shape: Shape, context: int, device: torch.device, dtype: torch.dtype) -> None:
    """Random weights, made where they are made fastest, and a tokenizer of letters."""
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
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@final
class Clock:
    """Seconds until the device is done, and no repetition after a limit."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self._device, self._end = device, time.monotonic() + limit

    @property
    def over(self) -> bool:
        return time.monotonic() > self._end

    def now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object]) -> float:
        start = self.now()
        work()
        return self.now() - start


def time_rollout(options: argparse.Namespace, folder: Path, clock: Clock, device: torch.device) -> dict[str, Any]:
    """Both samplers in turns, the first round of few tokens and not counted."""
    policy = CausalPolicy(str(folder), dtype="bfloat16").to(device)
    policy.eos_ids = frozenset({policy.model.config.vocab_size})
    prompts = [EncodedPrompt(Prompt(i, ""), (40,) * options.prompt_tokens) for i in range(options.sequences // K)]
    asked = torch.full((options.sequences, options.prompt_tokens), 40, device=device)

    def ours(tokens: int) -> None:
        said = CacheSampler(max_new_tokens=tokens).sample(policy, prompts, K, Stream(0, "gpu", 0))
        assert said.response_mask.all(), "lengths were forced"

    def theirs(tokens: int) -> None:
        forced = {"do_sample": True, "top_k": 0, "min_new_tokens": tokens, "max_new_tokens": tokens}
        policy.model.generate(input_ids=asked, attention_mask=torch.ones_like(asked), **forced)

    seconds: dict[str, list[float]] = {"ours": [], "generate": []}
    with policy.inference():
        for work in (ours, theirs):
            work(8)
        while len(seconds["generate"]) < options.repeats and not clock.over:
            seconds["ours"].append(clock.seconds(lambda: ours(options.tokens)))
            seconds["generate"].append(clock.seconds(lambda: theirs(options.tokens)))
    config = policy.model.config
    cache = 2 * 2 * config.num_hidden_layers * config.num_key_value_heads * (config.hidden_size // config.num_attention_heads)
    read = sum(p.numel() for p in policy.parameters()) - (0 if config.tie_word_embeddings else config.vocab_size * config.hidden_size)
    roof = Roof(2 * read, cache, options.bandwidth).tokens_per_second(options.sequences, options.prompt_tokens, options.tokens)
    rates = {side: options.sequences * options.tokens / median(taken) for side, taken in seconds.items()}
    ratios = [slow / fast for slow, fast in zip(seconds["generate"], seconds["ours"], strict=True)]
    spread = {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
    return {
        "tokens_per_second": rates,
        "of_the_roof": {side: rate / roof for side, rate in rates.items()},
        "roof": roof,
        **spread,
        "n": len(ratios),
    }


@final
class Written(Sampler):
    """Responses of random tokens: only the training step is timed."""

    def __init__(self, tokens: int) -> None:
        self.max_new_tokens = tokens

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        device, shape = next(policy.parameters()).device, (len(prompts), responses_per_prompt, self.max_new_tokens)
        shown = torch.tensor([prompt.tokens for prompt in prompts], device=device)
        mask = torch.ones(shape, dtype=torch.bool, device=device)
        return Rollouts(
            prompts=tuple(prompt.prompt for prompt in prompts),
            occurrences=torch.zeros(len(prompts), dtype=torch.long, device=device),
            prompt_tokens=shown,
            prompt_mask=torch.ones_like(shown, dtype=torch.bool),
            response_tokens=torch.randint(2, 200, shape, device=device),
            response_mask=mask,
            loss_mask=mask,
            sampling_logps=torch.zeros(shape, device=device),
            finished=mask[..., 0],
            texts=tuple(tuple(str(i) for i in range(responses_per_prompt)) for _ in prompts),
            policy_version=stream.rollout,
        )


@final
class StepClock(Callback):
    """Seconds of every optimizer step, from its first forward to its end; stops the run when time is up."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.seconds = clock, list[float]()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start = self._clock.now()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AlignmentBatch, batch_idx: int) -> None:
        if batch_idx + 1 == trainer.num_training_batches:
            self.seconds.append(self._clock.now() - self._start)
            trainer.should_stop = trainer.should_stop or self._clock.over


def time_training(options: argparse.Namespace, folder: Path, clock: Clock, device: torch.device) -> dict[str, Any]:
    """Optimizer steps of RLOO without a reference; the first is not counted."""
    lora = LoRA() if SHAPES[options.size].lora else None
    policy = CausalPolicy(str(folder), dtype="bfloat16" if lora else "float32", lora=lora, gradient_checkpointing=lora is not None)
    count, rows = options.sequences // K, options.micro_batch
    prompts = ListPrompts([chr(97 + i % 26) * options.prompt_tokens for i in range(count)])
    step = StepClock(clock)
    data = OnlineDataModule(
        prompts,
        Written(options.tokens),
        FunctionAnnotator(rule),
        prompts_per_rollout=count,
        responses_per_prompt=K,
        micro_batch_prompts=rows // K,
    )
    trainer = Trainer(
        accelerator=device.type if device.type == "cpu" else "gpu",
        devices=1,
        precision="bf16-mixed",
        max_epochs=options.repeats + 1,
        accumulate_grad_batches=options.sequences // rows,
        default_root_dir=folder / "run",
        callbacks=[step],
        **BARE,
    )
    trainer.fit(RLOO(policy, beta=0.0), data)
    taken = median(step.seconds[1:] or step.seconds)
    read = [len(policy.encode(prompt)) for prompt in prompts]
    tokens = K * sum(read) + options.sequences * options.tokens
    trained, frozen = (sum(p.numel() for p in policy.parameters() if p.requires_grad is wanted) for wanted in (True, False))
    mfu = utilisation(trained, frozen, tokens, taken, options.flops)
    return {
        "seconds": taken,
        "tokens_per_second": tokens / taken,
        "mfu": mfu,
        "trained": trained,
        "frozen": frozen,
        "n": len(step.seconds[1:]),
    }


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """One measurement; its line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=["rollout", "train"])
    parser.add_argument("--size", choices=[*SHAPES], default="0.5b")
    parser.add_argument("--sequences", type=int, default=128, help=f"a multiple of {K}")
    parser.add_argument("--tokens", type=int, default=512, help="of every response")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=8, help=f"sequences of one forward in training, a multiple of {K}")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=float, default=360, help="seconds after which no repetition begins")
    parser.add_argument("--flops", type=float, default=989e12, help="peak a second in bfloat16")
    parser.add_argument("--bandwidth", type=float, default=4.8e12, help="bytes a second")
    parser.add_argument("--toy", action="store_true", help="a model of nothing, on a CPU if need be: to see that it runs")
    options = parser.parse_args(arguments)
    if options.toy:
        options.size, options.sequences, options.tokens, options.prompt_tokens, options.repeats = "toy", 16, 8, 8, 2
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not options.toy:
        parser.error("there is no GPU here: --toy shows that the script runs")
    clock = Clock(device, options.limit)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder, SHAPES[options.size], options.prompt_tokens + options.tokens, device, torch.bfloat16)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        found = (time_rollout if options.what == "rollout" else time_training)(options, folder, clock, device)
    asked = {name: getattr(options, name) for name in ("what", "size", "sequences", "tokens", "prompt_tokens", "micro_batch")}
    gib = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else None
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result = asked | {"device": name, "torch": torch.__version__, "peak_gib": gib} | found
    print(json.dumps(result))
    if not options.toy:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return result


if __name__ == "__main__":
    main()
