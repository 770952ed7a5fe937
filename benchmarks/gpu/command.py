"""``python -m benchmarks.gpu``: check, measure, say which goals were met."""

import argparse
import json
import signal
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch

from benchmarks.gpu import ours
from benchmarks.gpu.case import SHAPES, TOY, Algorithm, Case, write_model
from benchmarks.gpu.check import check
from benchmarks.gpu.goals import verdicts
from benchmarks.gpu.rollout import time_rollout
from benchmarks.gpu.timing import Clock
from benchmarks.vs_trl.command import hush

RESULTS = Path("runs/bench/gpu.jsonl")
MISSING = "missing: TRL is not where Python looks; carry it in a folder that PYTHONPATH names"
SHARES = {
    "all": (0.3, 0.175),
    "rollout": (1.0, 0.0),
    "train": (0.0, 0.25),
    "check": (0.0, 0.0),
}  # of the limit: rollouts, each of four loops

VERDICTS = {True: "met", False: "missed", None: "not measured"}


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """One run; its line."""
    what, case, out = parse(arguments)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    result: dict[str, Any] = {"what": what, **asdict(case), "device": name, "torch": torch.__version__}
    try:
        with ending(case.end):
            say("check", result, check(device))
            hush()  # what the log says of ways and layouts has been said
            if what != "check":
                with tempfile.TemporaryDirectory() as folder:
                    measure(what, case, Path(folder), device, result)
    except TimeIsUp:
        say("broken_off", result, {"seconds": case.end})
    result["goals"] = verdicts(result)
    for goal in result["goals"]:
        print(f"Goal: {goal['goal']}, at least {goal['wanted']}: {VERDICTS[goal['met']]}, found {goal['found']}")
    print(json.dumps(result))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(result) + "\n")
    return result


class TimeIsUp(BaseException):
    """The run's own end, which nothing that is measured may take for an error of its own."""


@contextmanager
def ending(seconds: float) -> Iterator[None]:
    """Raises `TimeIsUp` in what is done meanwhile, as soon as Python has its turn after so many seconds."""

    def end(number: int, frame: object) -> None:
        raise TimeIsUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def parse(arguments: Sequence[str] | None) -> tuple[str, Case, Path | None]:
    """What to do, with what, and where the result goes."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description="Sampling and training on one GPU.")
    parser.add_argument("what", choices=[*SHARES])
    parser.add_argument("--size", choices=[*SHAPES])
    for field in fields(Case):
        if field.name != "size":
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default))
    parser.add_argument("--toy", action="store_true", help="a model of nothing, on a CPU if need be: to see that it runs")
    parser.add_argument("--out", type=Path, help=f"instead of {RESULTS}, where a toy leaves nothing")
    options = parser.parse_args(arguments)
    given = {field.name: getattr(options, field.name) for field in fields(Case) if getattr(options, field.name) is not None}
    case = replace(TOY if options.toy else Case(), **given)
    if case.sequences % case.micro_batch or case.micro_batch % 8:
        parser.error("--sequences has to be a multiple of --micro-batch, and that of 8")
    if case.size != "toy" and not torch.cuda.is_available():
        parser.error("there is no GPU here: --toy shows that the script runs")
    return options.what, case, options.out or (None if options.toy else RESULTS)


def measure(what: str, case: Case, folder: Path, device: torch.device, result: dict[str, Any]) -> None:
    """Fill ``result``, part by part."""
    rollout, loop = (case.limit * share for share in SHARES[what])
    write_model(folder, case.shape, case.prompt_tokens + case.tokens, device, torch.bfloat16)
    if rollout:
        say("rollout", result, time_rollout(case, folder, Clock(device, rollout), device))
    for algorithm in get_args(Algorithm) if loop else ():
        line = ours.run(algorithm, case, folder, Clock(device, loop), device)
        say(algorithm, result, {"ours": line})
        say(algorithm, result, {"ours": line, "trl": peer(algorithm, case, folder, loop, device, line["read_tokens"])})


def peer(algorithm: Algorithm, case: Case, folder: Path, limit: float, device: torch.device, read_tokens: int) -> Any:
    """TRL's line, or why there is none: too large for it or unknown to it, the rest of the run goes on."""
    if find_spec("trl") is None:
        return MISSING
    from benchmarks.gpu import theirs

    try:
        return theirs.run(algorithm, case, folder, Clock(device, limit), device, read_tokens)
    except RuntimeError as error:
        return f"missing: {type(error).__name__}: {str(error).partition(chr(10))[0]}"


def say(part: str, result: dict[str, Any], line: dict[str, Any]) -> None:
    """Keep it, and print it at once: a run that is ended has said what it found."""
    result[part] = line
    print(json.dumps({part: line}), flush=True)
