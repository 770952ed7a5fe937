"""``python -m benchmarks.vs_trl``: measure, print the table, and put it into the documentation."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from benchmarks.vs_trl import report, settings
from benchmarks.vs_trl.agreement import Disagreement
from benchmarks.vs_trl.case import ALGORITHMS, Case, published
from benchmarks.vs_trl.plan import AXES, Planned, everything, once, planned, sweep, swept_case
from benchmarks.vs_trl.results import Result, answers, append, code_hash, latest
from benchmarks.vs_trl.world import model_folder, stories, weights_hash
from lit_align.types import UserError

RESULTS = Path("runs/bench/vs_trl.jsonl")
TRIED = Path("runs/bench/quick.jsonl")
PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
CHANGES = ("prompts", "k", "prompt_tokens", "response_tokens")


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 1 where a case is missing."""
    options = parse(arguments)
    try:
        if options.page:
            return write_page()
        require_trl()
        hush()
        if options.peak:
            return print_peak(*options.peak)
        return run(options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl", description="lit_align and TRL side by side.")
    parser.add_argument("--algo", nargs="+", choices=[*ALGORITHMS, "dar"], default=list(ALGORITHMS), help="dar is beside lit_align's RLOO")
    parser.add_argument("--model", default="5m", help="1m, 5m, 12m or 25m, which are trained here, or a folder")
    for name in CHANGES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="other than the published shape")
    parser.add_argument("--forced", action="store_true", help="every response has the full length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="every line of docs/performance.md, sweeps too")
    parser.add_argument("--sweep", nargs="+", choices=AXES, default=[], help="how a step grows, for the first --algo")
    parser.add_argument("--steps", type=int, help="of each side, after one that is not timed; each line has its own number if left out")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a case takes no further round")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--again", action="store_true", help="measure also what this code was measured for already")
    parser.add_argument("--quick", action="store_true", help="two steps and no memory, in a file of its own: to see that it runs")
    parser.add_argument("--page", action="store_true", help="measure nothing: put the results that are there into docs/performance.md")
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.no_memory, options.again = 2, True, True
    return options


def lines(options: argparse.Namespace) -> list[Planned]:
    """What was asked for."""
    if options.all:
        found = everything()
    elif options.sweep:
        found = once(point for axis in options.sweep for point in sweep(axis, cases(options)[0]))
    else:
        found = list(map(planned, cases(options)))
    if options.steps is not None:
        found = [replace(line, steps=options.steps) for line in found]
    return [replace(line, memory=False) for line in found] if options.no_memory else found


def cases(options: argparse.Namespace) -> list[Case]:
    """The shapes that were asked for."""
    changes = {name: getattr(options, name) for name in CHANGES if getattr(options, name) is not None}
    return [replace(published(algorithm, options.model, options.threads), forced=options.forced, **changes) for algorithm in options.algo]


def require_trl() -> None:
    if find_spec("trl") is None:
        raise UserError("TRL is not installed beside lit_align: run `make bench`, or put the extra `bench` where Python finds it.")


def hush() -> None:
    """Leave out the bars and hints of the libraries, which would stand between the lines of a run of many loads."""
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    disable_progress_bars()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


def run(options: argparse.Namespace) -> int:
    """Measure each line, append its result to the file at once, and print what comes of all; a line is not measured again where the file
    has a result of the same code and weights, unless that was asked for."""
    file, texts = TRIED if options.quick else RESULTS, stories()
    there = {} if options.again else latest(file)
    found = dict[str, Result]()
    for line in lines(options):
        name = line.case.name
        weights = weights_hash(str(model_folder(line.case.model, texts)))
        if answers(there.get(name), line, code_hash(), weights):
            print(f"{name}: as measured before", file=sys.stderr)
            found[name] = there[name]
        else:
            print(f"{name} ...", file=sys.stderr, flush=True)
            found[name] = measured(line, texts, options.limit)
            append(file, found[name])
    print(f"\n{report.text(found, swept_case() if options.all else cases(options)[0])}")
    print(f"\n{settings.BOTH}")
    return int(any("missing" in result for result in found.values()))


def measured(line: Planned, texts: Sequence[str], limit: float) -> Result:
    """The result of a line; what went wrong where there are no numbers."""
    from benchmarks.vs_trl.measure import measure

    try:
        return measure(line, texts, limit)
    except (Disagreement, TimeoutError) as error:
        now = datetime.now(UTC).isoformat(timespec="minutes")
        return {"date": now, "case": asdict(line.case), "name": line.case.name, "missing": str(error), "load": os.getloadavg()[0]}


def write_page() -> int:
    """The latest result of every line of the page."""
    there, names = latest(RESULTS), [line.case.name for line in everything()]
    results = {name: there[name] for name in names if name in there}
    if not results:
        raise UserError(f"There are no results in {RESULTS}: run `python -m benchmarks.vs_trl --all` first.")
    report.write_page(PAGE, results, swept_case())
    print(f"{len(results)} of {len(names)} cases are in {PAGE}.")
    return 0


def print_peak(side: str, case: str) -> int:
    """What `memory.peaks` reads."""
    from benchmarks.vs_trl.measure import alone

    print(alone(Case.from_json(case), stories(), side))
    return 0
