"""CUDA graphs, played on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Recorder(TorchDispatchMode):
    """Notes every operation with the tensors and numbers that it had; a replay runs the same operations on the same memory.

    Whatever a step took from Python is as it was, a number read off a tensor is an error, and a tensor that was made anew for a step
    is not looked at: as in a CUDA graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        said = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, said))
        return said

    def replay(self) -> None:
        for func, args, kwargs, said in self.calls:
            for new, old in zip(tree_leaves(func(*args, **kwargs)), tree_leaves(said), strict=True):
                if isinstance(new, Tensor) and new.data_ptr() != old.data_ptr():
                    old.copy_(new)


def run_and_record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """In the place of `static.run_and_record`."""
    step()
    recorder = Recorder()
    with recorder:
        step()
    return recorder.replay
