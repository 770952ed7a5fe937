"""Any callable as an annotator: sync, async, from a YAML, and when it fails."""

import asyncio
import functools
import math
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lit_align.annotators import FunctionAnnotator
from lit_align.types import Annotator, Prompt, Rollouts, UserError

TEXTS = (("a", "bbb"), ("cc", ""), ("dddd", "e"))
LENGTHS = [[1.0, 3.0], [2.0, 0.0], [4.0, 1.0]]


def rollouts() -> Rollouts:
    """Three prompts "prompt 0" to "prompt 2", K = 2, T = 2."""
    mask = torch.ones(3, 2, 2, dtype=torch.bool)
    return Rollouts(
        prompts=tuple(Prompt(i, f"prompt {i}", reference=str(i)) for i in range(3)),
        occurrences=torch.zeros(3, dtype=torch.long),
        prompt_tokens=torch.ones(3, 3, dtype=torch.long),
        prompt_mask=torch.ones(3, 3, dtype=torch.bool),
        response_tokens=torch.ones(3, 2, 2, dtype=torch.long),
        response_mask=mask,
        loss_mask=mask,
        sampling_logps=torch.zeros(3, 2, 2),
        finished=mask.all(-1),
        texts=TEXTS,
        policy_version=0,
    )


def lengths(prompt, texts):
    return [len(text) for text in texts]


async def async_lengths(prompt, texts):
    await asyncio.sleep(0)
    return lengths(prompt, texts)


class Lengths:
    def __call__(self, prompt, texts):
        return lengths(prompt, texts)


class AsyncLengths:
    async def __call__(self, prompt, texts):
        return await async_lengths(prompt, texts)


@pytest.fixture
def annotate():
    """Annotates the rollouts by a function, and closes the annotator."""
    made = []

    def call(function, **options):
        made.append(FunctionAnnotator(function, **options))
        return made[-1].annotate(rollouts())

    yield call
    for annotator in made:
        annotator.close()


@pytest.mark.parametrize(
    "function",
    [
        lengths,
        Lengths(),
        async_lengths,
        AsyncLengths(),
        functools.partial(async_lengths),
        functools.partial(AsyncLengths()),
        lambda prompt, texts: async_lengths(prompt, texts),
    ],
)
def test_scores_are_the_functions(function, annotate):
    annotation = annotate(function)
    assert annotation.scores.tolist() == LENGTHS
    assert annotation.scores.dtype == torch.float32
    assert annotation.valid.all()
    assert annotation.valid.dtype == torch.bool
    assert annotation.preferences is None


def test_it_is_called_once_per_prompt_with_its_responses(annotate):
    calls = []

    def function(prompt, texts):
        calls.append((prompt, texts))
        return [0.0, 0.0]

    annotate(function)
    assert calls == list(zip(rollouts().prompts, TEXTS, strict=True))


@pytest.mark.parametrize(
    "convert",
    [torch.tensor, lambda n: torch.tensor(n, dtype=torch.bfloat16, requires_grad=False), np.array, tuple, iter,
     lambda n: [torch.tensor(i) for i in n], lambda n: [np.float64(i) for i in n]],
)  # fmt: skip
def test_numbers_of_any_library(convert, annotate):
    assert annotate(lambda prompt, texts: convert(lengths(prompt, texts))).scores.tolist() == LENGTHS


def test_booleans_are_one_and_zero(annotate):
    assert annotate(lambda prompt, texts: [text != "" for text in texts]).scores.tolist() == [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]


def test_gradient_ends_here(annotate):
    assert not annotate(lambda prompt, texts: torch.ones(2, requires_grad=True).detach()).scores.requires_grad


def test_the_version_is_the_annotators():
    annotator = FunctionAnnotator(lengths)
    annotator.version = 3
    assert annotator.annotate(rollouts()).annotator_version == 3


# Concurrency


class Meter:
    """An async function that records how many calls wait at once, and on which loop."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self.loops = []

    async def __call__(self, prompt, texts):
        self.loops.append(asyncio.get_running_loop())
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(0.01 * (3 - prompt.id))  # the last is ready first
        self.now -= 1
        return lengths(prompt, texts)


@pytest.mark.parametrize(("concurrency", "most"), [(1, 1), (2, 2), (16, 3)])
def test_async_calls_wait_together_up_to_the_limit_and_keep_their_order(concurrency, most, annotate):
    meter = Meter()
    assert annotate(meter, concurrency=concurrency).scores.tolist() == LENGTHS
    assert meter.most == most


def test_all_chunks_share_one_event_loop_which_close_ends():
    meter = Meter()
    annotator = FunctionAnnotator(meter)
    annotator.annotate(rollouts())
    annotator.annotate(rollouts())
    assert len(set(meter.loops)) == 1
    annotator.close()
    assert meter.loops[0].is_closed()
    annotator.close()  # again is harmless
    assert annotator.annotate(rollouts()).scores.tolist() == LENGTHS  # and it can be used again
    annotator.close()


def test_it_works_inside_a_running_loop_as_in_a_notebook():
    async def cell():
        annotator = FunctionAnnotator(async_lengths)
        try:
            return [annotator.annotate(rollouts()) for _ in range(2)]
        finally:
            annotator.close()

    assert [annotation.scores.tolist() for annotation in asyncio.run(cell())] == [LENGTHS, LENGTHS]


def test_concurrency_must_be_positive():
    with pytest.raises(UserError, match=r"concurrency should be .* at least 1, got 0"):
        FunctionAnnotator(lengths, concurrency=0)


# Failures


def failing(fail):
    """Fails on prompt 1 only."""
    return lambda prompt, texts: fail() if prompt.id == 1 else lengths(prompt, texts)


def asynchronous(function):
    async def call(prompt, texts):
        return function(prompt, texts)

    return call


def raise_it(error):
    raise error


@pytest.mark.parametrize(
    ("function", "waits"), [(lengths, False), (asynchronous(lengths), True), (functools.partial(asynchronous(lengths)), True)]
)
def test_an_async_function_waits_for_something(function, waits):
    assert FunctionAnnotator(function).waits is waits


WHOLE_ROW = [
    ("raised", lambda: raise_it(KeyError("no answer")), r"it raised KeyError\('no answer'\)"),
    ("raised", lambda: raise_it(TimeoutError()), r"it raised TimeoutError\(\)"),
    ("unusable", lambda: [1.0], r"returned 1 scores for 2 responses: \[1.0\]"),
    ("unusable", lambda: [1.0, 2.0, 3.0], r"returned 3 scores for 2 responses"),
    ("unusable", lambda: [], r"returned 0 scores for 2 responses"),
    ("unusable", lambda: 0.5, r"returned 0.5 \(.*not iterable\)"),
    ("unusable", lambda: None, r"returned None"),
    ("unusable", lambda: "12", r"returned '12' \('1' is a text, not a number\)"),
    ("unusable", lambda: [1.0, None], r"returned \[1.0, None\]"),
    ("unusable", lambda: [[1.0, 2.0], [3.0, 4.0]], r"returned \[\[1.0, 2.0\]"),
    ("unusable", lambda: [10**400, 1], r"returned \[1000.*too large"),
]


@pytest.mark.parametrize("wrap", [lambda function: function, asynchronous], ids=["sync", "async"])
@pytest.mark.parametrize(("kind", "fail", "message"), WHOLE_ROW)
def test_a_row_that_cannot_be_scored_is_invalid_and_the_run_goes_on(kind, fail, message, wrap):
    annotator = FunctionAnnotator(wrap(failing(fail)))
    with pytest.warns(UserWarning, match=message) as caught:
        annotation = annotator.annotate(rollouts())
    annotator.close()
    assert len(caught) == 1
    assert annotation.valid.tolist() == [[True, True], [False, False], [True, True]]
    assert annotation.scores.tolist() == [LENGTHS[0], [0.0, 0.0], LENGTHS[2]]
    assert annotator.failures == {kind: 1}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
@pytest.mark.parametrize("convert", [list, torch.tensor, np.array])
def test_only_the_response_that_is_not_finite_is_invalid(bad, convert):
    annotator = FunctionAnnotator(failing(lambda: convert([bad, 5.0])))
    with pytest.warns(UserWarning, match="not all finite"):
        annotation = annotator.annotate(rollouts())
    assert annotation.valid.tolist() == [[True, True], [False, True], [True, True]]
    assert annotation.scores.tolist() == [LENGTHS[0], [0.0, 5.0], LENGTHS[2]]
    assert annotator.failures == {"not_finite": 1}


def test_each_kind_warns_once_and_all_are_counted():
    failures = [lambda: raise_it(ValueError("no")), lambda: [1.0], lambda: [math.nan, 1.0]]
    annotator = FunctionAnnotator(lambda prompt, texts: failures[prompt.id]())
    with pytest.warns(UserWarning, match="FunctionAnnotator expected") as caught:
        annotator.annotate(rollouts())
    assert len(caught) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        annotator.annotate(rollouts())
    assert annotator.failures == {"raised": 2, "unusable": 2, "not_finite": 2}


def test_another_annotator_warns_again():
    for _ in range(2):
        with pytest.warns(UserWarning, match="returned 0 scores"):
            FunctionAnnotator(failing(list)).annotate(rollouts())


def test_the_warning_says_where_what_and_what_to_do():
    # the function's name, the prompt, what came, what becomes of it, what to do
    parts = ("one finite number per response from failing", "ValueError('boom')", "'prompt 1'", "all 2 responses", "Correct the function")
    with pytest.warns(UserWarning, match=".*".join(map(re.escape, parts))):
        FunctionAnnotator(failing(lambda: raise_it(ValueError("boom")))).annotate(rollouts())


@pytest.mark.parametrize("content", ["x" * 5000, ({"role": "system", "content": "rules"}, {"role": "user", "content": "x" * 5000})])
def test_the_warning_has_the_start_of_the_prompt(content):
    annotator = FunctionAnnotator(lambda prompt, texts: [])
    with pytest.warns(UserWarning, match="for the prompt 'xxxxxxxx") as caught:
        annotator.annotate(replace(rollouts().rows([0]), prompts=(Prompt(0, content),)))
    assert len(str(caught[0].message)) < 600


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("wrap", [lambda function: function, asynchronous], ids=["sync", "async"])
def test_ctrl_c_ends_the_run(stop, wrap):
    with pytest.raises(stop):
        FunctionAnnotator(wrap(failing(lambda: raise_it(stop())))).annotate(rollouts())


def test_ctrl_c_cancels_the_calls_that_wait():
    cancelled = []

    async def function(prompt, texts):
        if prompt.id == 2:
            raise KeyboardInterrupt
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(prompt.id)
            raise

    with pytest.raises(KeyboardInterrupt):
        FunctionAnnotator(function).annotate(rollouts())
    assert sorted(cancelled) == [0, 1]


# From a YAML

MODULE = """
def lengths(prompt, texts):
    return [len(text) for text in texts]

async def async_lengths(prompt, texts):
    return lengths(prompt, texts)

class Times:
    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def __call__(self, prompt, texts):
        return [self.factor * length for length in lengths(prompt, texts)]

class AsyncTimes(Times):
    async def __call__(self, prompt, texts):
        return super().__call__(prompt, texts)
"""


@pytest.mark.parametrize(
    ("function", "factor"),
    [
        ("scorers_of_a_user.lengths", 1),
        ("scorers_of_a_user.async_lengths", 1),
        ("{class_path: scorers_of_a_user.Times, init_args: {factor: 2}}", 2),
        ("{class_path: scorers_of_a_user.AsyncTimes, init_args: {factor: 3}}", 3),
    ],
)
def test_from_a_yaml(function, factor, tmp_path, monkeypatch):
    (tmp_path / "scorers_of_a_user.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--annotator", type=Annotator)
    yaml = f"annotator: {{class_path: lit_align.annotators.FunctionAnnotator, init_args: {{function: {function}, concurrency: 2}}}}"
    annotator = parser.instantiate(parser.parse_string(yaml)).annotator
    scores = annotator.annotate(rollouts()).scores
    annotator.close()
    assert scores.tolist() == [[factor * length for length in row] for row in LENGTHS]
    assert annotator.concurrency == 2


class Judge:
    def __call__(self, prompt, responses):
        return [0.0 for _ in responses]


def test_the_identity_is_the_name_of_the_function():
    def mine(prompt, responses):
        return [0.0 for _ in responses]

    assert FunctionAnnotator(mine).identity == f"{__name__}.test_the_identity_is_the_name_of_the_function.<locals>.mine"
    assert FunctionAnnotator(Judge()).identity == f"{__name__}.Judge"
