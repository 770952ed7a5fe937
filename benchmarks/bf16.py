"""What sampling from a bfloat16 copy of the policy saves and costs on a CPU.

    python -m benchmarks.bf16                  # the models of 5 and 25 million parameters of benchmarks.vs_trl, one thread
    python -m benchmarks.bf16 --model my-model --rounds 10
    python -m benchmarks.bf16 --toy            # a model of nothing, RLOO alone: to see that it runs

Three tables: processor time of sampling alone for a response token, in float32 and in bfloat16, each read plainly (`PaddedRows`) and,
where the model is small enough, by fused weights (`FusedRows`); of a whole optimizer step of RLOO (8 prompts x 4 responses) and of online
DPO (16 x 2) with `CacheSampler` and with `Bfloat16Sampler`, one step each in turn; and how far the copy is from the policy. Medians, and
in brackets the smallest and the largest. Each sampler draws its own texts, so lengths differ: hence per token. `LIT_ALIGN_DATA` is the
folder with ``tinystories/dev.jsonl``.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer

from benchmarks.gpu.case import SHAPES, write_model
from benchmarks.runs import markdown
from benchmarks.vs_trl import ours
from benchmarks.vs_trl.case import Algorithm, Case, published
from benchmarks.vs_trl.summary import Spread, Turn, ratios
from benchmarks.vs_trl.turns import EndOfTurn, Relay
from benchmarks.vs_trl.world import World, make_world, stories
from lit_align.generation import Bfloat16Sampler, CacheSampler
from lit_align.models import CausalPolicy
from lit_align.models.decoding import PaddedRows
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, EncodedPrompt, Prompt, RolloutCallback, Rollouts, Sampler, Stream

LIMIT = 600.0  # seconds after which no round of steps begins
ALGORITHMS: tuple[Algorithm, ...] = ("rloo", "online_dpo")
SHORT = {"prompt_tokens": 8, "response_tokens": 8}  # of a toy


@final
class Mismatch(RolloutCallback):
    """What the copy and the policy said of the same tokens: absolute differences in nats, and the factor of every response."""

    def __init__(self) -> None:
        self.differences, self.cut = list[torch.Tensor](), list[float]()

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        assert batch.engine_logps is not None
        differences = batch.above_sampling(batch.engine_logps)
        self.differences.append(differences[batch.loss_mask].abs())
        self.cut.append(float((-differences.sum(-1) > torch.tensor(batch.max_engine_factor).log()).float().mean()))


def sampling(case: Case, world: World, rounds: int) -> dict[str, Spread]:
    """Microseconds of processor time for a token, of each dtype and way."""
    policy = CausalPolicy(world.model)
    readings = {("float32", policy.way): policy}
    with policy.inference():
        copy = policy.rounded()
    readings |= {("float32", PaddedRows): policy, ("bfloat16", policy.way): copy, ("bfloat16", PaddedRows): copy}
    prompts = [EncodedPrompt(Prompt(i, text), tuple(policy.encode(Prompt(i, text)))) for i, text in enumerate(world.prompts)]
    taken: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        for (dtype, way), reader in sorted(readings.items(), key=lambda item: (item[0][0], item[0][1].__name__)):
            reader._way, reader.decoding = way, way.__name__
            with reader.inference():
                start = time.process_time()
                said = CacheSampler(case.response_tokens).sample(reader, prompts, case.k, Stream(0, "bf16", number))
                seconds = time.process_time() - start
            if number:  # the first one makes what is made once
                taken.setdefault(f"{dtype}, {reader.way.__name__}", []).append(1e6 * seconds / int(said.response_mask.sum()))
    return {name: Spread.of(values) for name, values in taken.items()}


def steps(case: Case, world: World, rounds: int) -> tuple[dict[str, list[Turn]], Mismatch]:
    """Optimizer steps with each sampler, and how far the copy was from the policy."""
    relay, found = Relay(["float32", "bfloat16"], rounds, 1, LIMIT), Mismatch()

    def loop(name: str, sampler: Sampler, callbacks: list[Any], root: Path, end: EndOfTurn) -> None:
        module = ours.make_module(case, ours.make_policy(case, world))
        ours.fit(module, ours.make_data(case, world, sampler), root / name, rounds + 1, [ours.Hand(end), *callbacks])

    with tempfile.TemporaryDirectory() as folder:
        root, longest = Path(folder), case.response_tokens
        loops = {
            "float32": lambda end: loop("float32", CacheSampler(longest), [], root, end),
            "bfloat16": lambda end: loop("bfloat16", Bfloat16Sampler(longest), [found], root, end),
        }
        return relay.run(loops, case.threads), found


def main(arguments: Sequence[str] | None = None) -> dict[str, list[list[str]]]:
    """Print the tables; their rows."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bf16", description=str(__doc__).partition("\n")[0])
    parser.add_argument("--model", nargs="+", default=["5m", "25m"], help="sizes that the benchmark trains, or folders")
    parser.add_argument("--rounds", type=int, default=6, help="of every measurement, after one that is not counted")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--toy", action="store_true", help="a model of nothing: to see that it runs")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        if options.toy:
            write_model(Path(folder), SHAPES["toy"], 64, torch.device("cpu"), torch.float32)
            options.model, options.rounds = [folder], 2
        texts = [" ".join(f"{letter}{other}" for other in "abcdefgh") for letter in "abcdefgh"] if options.toy else stories()
        tables = measured(options, texts)
    for title, (header, *rows) in tables.items():
        print(f"\n{title}\n\n{markdown(header, rows)}", flush=True)
    return tables


def measured(options: argparse.Namespace, texts: Sequence[str]) -> dict[str, list[list[str]]]:
    """Header and rows of each table."""
    alone = [["model", "dtype, way", "us of CPU a token", "n"]]
    whole = [["step", "float32, ms of CPU a token", "bfloat16, ms", "float32 / bfloat16", "n"]]
    apart = [["step", "mean abs difference of a token, nats", "largest", "responses whose factor is cut"]]
    for model in options.model:
        for algorithm in ALGORITHMS[: 1 if options.toy else None]:
            case = published(algorithm, model, options.threads)
            case = replace(case, **SHORT) if options.toy else case
            world = make_world(case, texts)
            if algorithm == ALGORITHMS[0]:
                found = sampling(case, world, options.rounds)
                alone += [[model, name, spread.text(0), str(options.rounds)] for name, spread in found.items()]
            turns, mismatch = steps(case, world, options.rounds)
            exact, rounded = turns["float32"], turns["bfloat16"]
            cells = [Spread.of([1e3 * turn.cpu / turn.response_tokens for turn in side]).text() for side in (exact, rounded)]
            whole.append([case.name, *cells, Spread.of(ratios(exact, rounded, "cpu")).text(), str(len(exact))])
            differences = torch.cat(mismatch.differences)
            apart.append([case.name, f"{differences.mean():.4f}", f"{differences.max():.2f}", f"{mean(mismatch.cut):.1%}"])
    return {"Sampling alone": alone, "A whole step": whole, "The copy and the policy": apart}


if __name__ == "__main__":
    main()
