"""What fresh rows and labels of the policy's own cost: processor time of a rollout beside that of offline DPO on the same pairs.

``lit-align quickstart`` and ``python -m benchmarks.quickstart_table`` first, for the policy and the pairs. Then, in the same folder,

    python -m benchmarks.mixture_overhead

takes nine rollouts of 32 rows with each design in turn, three times over, and prints the median of the last eight as a multiple of
offline DPO's. The annotator is a Python function: a real one comes on top.
"""

import tempfile
from statistics import median
from time import process_time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.quickstart_table import PAIRS
from benchmarks.runs import BARE
from lit_align.algorithms import DPO, SAIL
from lit_align.annotators import FunctionAnnotator
from lit_align.data import JsonlPrompts, MixedDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.quickstart.rules import proxy_score
from lit_align.types import UserError

ROLLOUTS, REPEATS = 9, 3
DESIGNS: dict[str, tuple[type[DPO | SAIL], dict[str, float], dict[str, float]]] = {
    "DPO, offline": (DPO, {}, {}),
    "SAIL-DP": (SAIL, {"relabel": 0.4}, {}),
    "SAIL-PP": (SAIL, {"fresh_self": 0.3}, {}),
    "SAIL-PR": (SAIL, {"fresh_annotated": 0.3}, {}),
    "SAIL-PR with a price of divergence": (SAIL, {"fresh_annotated": 0.3}, {"reference_kl": 1e-3}),
}


class Clock(Callback):
    """Processor time at the end of every rollout."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.ends.append(process_time())


def seconds(kind: type[DPO | SAIL], mixture: dict[str, float], options: dict[str, Any]) -> list[float]:
    """Of every rollout but the first."""
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        data = MixedDataModule(
            JsonlPrompts(str(PAIRS)),
            CacheSampler(max_new_tokens=64),
            FunctionAnnotator(proxy_score),
            micro_batch_prompts=32,
            max_response_tokens=64,
            **mixture,
        )
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=ROLLOUTS,
            default_root_dir=folder,
            **BARE,
            callbacks=[clock],
        )
        trainer.fit(kind(CausalPolicy("runs/quickstart/policy"), **options), data)
    return [after - before for before, after in zip(clock.ends, clock.ends[1:], strict=False)]


def main() -> None:
    if not PAIRS.is_file():
        raise UserError("There are no pairs yet: run `lit-align quickstart`, then `python -m benchmarks.quickstart_table`, here first.")
    torch.set_num_threads(1)
    found: dict[str, list[float]] = {name: [] for name in DESIGNS}
    for _ in range(REPEATS):
        for name, design in DESIGNS.items():
            found[name].append(median(seconds(*design)))
    base = median(found["DPO, offline"])
    print("| | rollout, times offline DPO | from | to |\n|---|---:|---:|---:|")
    for name, times in found.items():
        print(f"| {name} | {median(times) / base:.2f} | {min(times) / base:.2f} | {max(times) / base:.2f} |")


if __name__ == "__main__":
    main()
