"""Seconds and bytes of a device."""

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any, final

import torch


@final
class Clock:
    """Seconds until the device is done, its peak memory since the clock was made, and no repetition after a limit."""

    def __init__(self, device: torch.device, limit: float) -> None:
        self._device, self._end = device, time.monotonic() + limit
        self.forget()

    @property
    def over(self) -> bool:
        """Whether it is too late for another repetition."""
        return time.monotonic() > self._end

    @property
    def peak(self) -> float | None:
        """GiB; None where the device does not count."""
        return torch.cuda.max_memory_allocated() / 2**30 if self._device.type == "cuda" else None

    def forget(self) -> None:
        """Give back what nobody holds, and count the peak from here on."""
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def now(self) -> float:
        """Seconds, when all that was asked of the device is done."""
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def seconds(self, work: Callable[[], object]) -> float:
        """How long it takes."""
        start = self.now()
        work()
        return self.now() - start


@final
class Steps:
    """Optimizer steps of a loop, in two parts: sampling, and everything else."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.sampling, self.training = clock, list[float](), list[float]()
        self._start, self._sampled = clock.now(), 0.0

    def sample(self, work: Callable[[], Any]) -> Any:
        """What ``work``, a part of the step's sampling, returns."""
        start = self.clock.now()
        said = work()
        self._sampled += self.clock.now() - start
        return said

    def end(self) -> bool:
        """A step is over; whether there is time for another one."""
        now = self.clock.now()
        self.sampling.append(self._sampled)
        self.training.append(now - self._start - self._sampled)
        self._start, self._sampled = now, 0.0
        return not self.clock.over

    def line(self, response_tokens: int, read_tokens: int) -> dict[str, Any]:
        """Medians without the first step, which makes and tries out what the others use, unless time was over after it (``n`` is 0 then).

        ``read_tokens`` are those of prompts and responses that a training step is about, each response after a prompt of its own."""
        sampling, training = (median(taken[1:] or taken) for taken in (self.sampling, self.training))
        return {
            "rollout_tokens_per_second": response_tokens / sampling,
            "training_tokens_per_second": read_tokens / training,
            "rollout_seconds": sampling,
            "training_seconds": training,
            "peak_gib": self.clock.peak,
            "n": len(self.sampling) - 1,
        }


@final
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
