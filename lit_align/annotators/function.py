"""Any Python callable as an annotator."""

import asyncio
import inspect
import math
import warnings
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from contextvars import copy_context
from functools import partial
from types import FunctionType
from typing import Any, TypeVar, final

import torch

from lit_align.annotators.waiting import outside_of_a_loop
from lit_align.types import Annotation, Annotator, Prompt, Rollouts, UserError

ScoreFunction = Callable[[Prompt, Sequence[str]], Sequence[float] | Awaitable[Sequence[float]]]
"""Scores of the ``K`` responses to one prompt, larger is better: numbers, or a tensor or an array ``[K]`` of them."""

_T = TypeVar("_T")


@final
class FunctionAnnotator(Annotator):
    """Calls ``function(prompt, texts)`` once per prompt; what it cannot score is invalid, never fatal.

    Where the function raises, or returns anything but ``K`` numbers, all ``K`` responses are invalid; where a number is
    not finite (in float32), that response is. The first failure of each kind is shown as a warning, all are counted.
    Only what is no ``Exception``, such as Ctrl-C, ends the run.

    Args:
        function: a function, or an object with ``__call__``, sync or ``async``. In a YAML an import path, or the
            ``class_path`` of the object.
        concurrency: how many calls of an ``async`` function may wait at once. All of them, over the whole run, are in one
            event loop, so that the function may keep a client open.

    Attributes:
        failures: prompts, by kind of failure: ``raised``, ``unusable`` (not ``K`` numbers), ``not_finite``.

    Raises:
        UserError: if ``concurrency`` is not positive.
    """

    def __init__(self, function: ScoreFunction, concurrency: int = 16) -> None:
        if concurrency < 1:
            raise UserError(f"FunctionAnnotator: concurrency should be the number of calls at once, at least 1, got {concurrency}.")
        self.function = function
        named = function if isinstance(function, FunctionType) else type(function)
        self.identity = f"{named.__module__}.{named.__qualname__}"
        self.concurrency, self.waits = concurrency, _is_async(function)
        self.failures: Counter[str] = Counter()
        self._runner: asyncio.Runner | None = None

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` on the CPU."""
        asked = list(zip(rollouts.prompts, rollouts.texts, strict=True))
        if _is_async(self.function):
            answers = self._wait_for(self._ask_concurrently(asked))
        else:
            answers = [self._ask(prompt, texts) for prompt, texts in asked]
        rows = [self._read(prompt, texts, answer) for (prompt, texts), answer in zip(asked, answers, strict=True)]
        scores = torch.tensor(rows, dtype=torch.float32).reshape(rollouts.response_tokens.shape[:2])  # [B, K]
        valid = scores.isfinite()
        return Annotation(scores=scores.where(valid, 0.0), valid=valid, annotator_version=self.version)

    def close(self) -> None:
        """Close the event loop that the calls of an ``async`` function were made in."""
        if self._runner is not None:
            outside_of_a_loop(self._runner.close)
            self._runner = None

    def _ask(self, prompt: Prompt, texts: Sequence[str]) -> object:
        """What the function returned, or the exception that it raised."""
        try:
            answer = self.function(prompt, texts)
            return self._wait_for(_awaited(answer)) if inspect.isawaitable(answer) else answer
        except Exception as error:
            return error

    async def _ask_concurrently(self, asked: Iterable[tuple[Prompt, Sequence[str]]]) -> list[object]:
        gate = asyncio.Semaphore(self.concurrency)

        async def ask(prompt: Prompt, texts: Sequence[str]) -> object:
            async with gate:
                try:
                    return await self.function(prompt, texts)  # pyright: ignore[reportGeneralTypeIssues]
                except Exception as error:
                    return error

        return await asyncio.gather(*(ask(prompt, texts) for prompt, texts in asked))

    def _wait_for(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        self._runner = self._runner or asyncio.Runner()
        try:
            return outside_of_a_loop(partial(self._runner.run, coroutine, context=copy_context()))  # whose meter is that of now
        except BaseException:
            self.close()  # cancels the calls still waiting
            raise

    def _read(self, prompt: Prompt, texts: Sequence[str], answer: object) -> list[float]:
        """``K`` float32 numbers; NaN for what is invalid."""
        if isinstance(answer, Exception):
            self._fail("raised", prompt, f"it raised {answer!r}", f"all {len(texts)} responses")
            return [math.nan] * len(texts)
        try:
            scores = [_number(score) for score in answer]  # pyright: ignore[reportGeneralTypeIssues]
        except Exception as error:
            scores, problem = None, f"it returned {_shown(answer)} ({error})"
        else:
            problem = f"it returned {len(scores)} scores for {len(texts)} responses: {_shown(answer)}"
        if scores is None or len(scores) != len(texts):
            self._fail("unusable", prompt, problem, f"all {len(texts)} responses")
            return [math.nan] * len(texts)
        if not torch.tensor(scores, dtype=torch.float32).isfinite().all():
            self._fail("not_finite", prompt, f"it returned {_shown(answer)}, not all finite in float32", "those responses")
        return scores

    def _fail(self, kind: str, prompt: Prompt, problem: str, invalid: str) -> None:
        self.failures[kind] += 1
        if self.failures[kind] > 1:
            return
        text = prompt.content if isinstance(prompt.content, str) else prompt.content[-1]["content"]
        warnings.warn(
            f"FunctionAnnotator expected one finite number per response from {_name(self.function)}, but {problem}, for the prompt "
            f"{_shown(text)}. There {invalid} are invalid (nothing is learned from them) and the run goes on. Correct the function if it "
            f"should not happen; later cases are counted in `failures[{kind!r}]` and not shown.",
            stacklevel=2,
        )


def _is_async(function: Callable[..., Any]) -> bool:
    while isinstance(function, partial):
        function = function.func
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


async def _awaited(answer: Awaitable[object]) -> object:
    try:
        return await answer
    except Exception as error:
        return error


def _number(score: Any) -> float:
    if isinstance(score, (str, bytes)):
        raise TypeError(f"{score!r} is a text, not a number")
    return float(score)


def _name(function: Callable[..., Any]) -> str:
    return getattr(function, "__qualname__", type(function).__qualname__)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
