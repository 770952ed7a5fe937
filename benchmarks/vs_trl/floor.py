"""What an optimizer step would cost if it were nothing but the matrix products that it can't do without.

Every prompt is read once, however many responses it gets; the output head reads responses only; attention, norms, sampling noise and
the optimizer are free. A step is then some forwards of the same tokens: sampling one, the reference one, training three (a backward is
two). The speed of products and of memory is measured on the machine, in seconds of processor time, in the same run.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from benchmarks.vs_trl.case import Case
from benchmarks.vs_trl.summary import Turn

SIDE = 1536  # rows of the matrices that are multiplied, 9 MiB each
READ_MIB = 256
FORWARDS = {"online_dpo": 5, "rloo": 5, "grpo": 5, "sft": 3, "dpo": 4, "dar": 5}


@dataclass(frozen=True)
class Machine:
    """Of a second of processor time, float32: operations in matrix products, and bytes that are read."""

    flops: float
    bytes: float


@dataclass(frozen=True)
class Size:
    """Weights of a model that take part in matrix products: of the layers, which every token passes, and of the head."""

    body: int
    head: int


def size_of(model: PreTrainedModel) -> Size:
    """Matrices only; embeddings are looked up, norms are vectors."""
    head, embedded = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    matrices = {id(p): p.numel() for p in model.parameters() if p.dim() > 1}
    return Size(sum(matrices.values()) - sum(matrices[i] for i in {id(head), id(embedded)}), head.numel())


def floor_seconds(case: Case, size: Size, turn: Turn, machine: Machine) -> float:
    """Seconds of processor time for the tokens of ``turn``.

    Decoding reads all weights again for every token of the longest response; what takes longer counts, the products or that.
    """
    tokens = turn.prompt_tokens + turn.response_tokens
    forward = (2 * size.body * tokens + 2 * size.head * turn.response_tokens) / machine.flops
    forwards = FORWARDS[case.algorithm]
    if not case.online:
        return forwards * forward
    reads = case.response_tokens * 4 * (size.body + size.head) / machine.bytes
    return (forwards - 1) * forward + max(forward, reads)


def measure(threads: int) -> Machine:
    """The best of several tries each: a machine that others use is never faster than itself."""
    torch.set_num_threads(threads)
    a, b = torch.randn(SIDE, SIDE), torch.randn(SIDE, SIDE)
    memory = torch.zeros(READ_MIB * 2**18)
    return Machine(2 * SIDE**3 / _best(lambda: a @ b), memory.numel() * 4 / _best(memory.sum))


def _best(work: Callable[[], object], tries: int = 7) -> float:
    seconds = []
    for _ in range(tries):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)
