"""``python -m benchmarks.vs_trl``: measure, print the table, and put it into the documentation."""

import argparse
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

from datasets import disable_progress_bars
from transformers.utils import logging as transformers_logging

from benchmarks.vs_trl import ours, report
from benchmarks.vs_trl.agreement import Disagreement
from benchmarks.vs_trl.case import ALGORITHMS, Axis, Case, along, everything, published, swept
from benchmarks.vs_trl.summary import slope
from benchmarks.vs_trl.world import stories
from lit_align.types import UserError

RESULTS = Path("runs/bench/vs_trl.jsonl")
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
        return sweep(options) if options.sweep else run(cases(options), options)
    except UserError as error:
        print(error, file=sys.stderr)
        return 1


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vs_trl", description="lit_align and TRL side by side.")
    parser.add_argument("--algo", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--model", default="5m", help="1m, 5m, 12m or 25m, which are trained here, or a folder")
    for name in CHANGES:
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="other than the published shape")
    parser.add_argument("--forced", action="store_true", help="every response has the full length")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--all", action="store_true", help="every line of docs/performance.md")
    parser.add_argument("--sweep", choices=get_args(Axis), help="how a step grows, for the first --algo")
    parser.add_argument("--steps", type=int, default=6, help="of each side, after one that is not timed")
    parser.add_argument("--limit", type=float, default=600, help="seconds after which a case takes no further round")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--quick", action="store_true", help="two steps and no memory: to see that it runs")
    parser.add_argument("--page", action="store_true", help="measure nothing: put the results that are there into docs/performance.md")
    parser.add_argument("--peak", nargs=2, metavar=("SIDE", "CASE"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.quick:
        options.steps, options.no_memory = 2, True
    return options


def cases(options: argparse.Namespace) -> list[Case]:
    """Those that were asked for."""
    if options.all:
        return list(everything())
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


def run(asked: Iterable[Case], options: argparse.Namespace) -> int:
    """Measure each, append its line to the file of results at once, and print the table."""
    from benchmarks.vs_trl import theirs

    texts = stories()
    results = [measured(case, texts, options) for case in asked]
    print(f"\n{report.table(results)}\n\n{report.machines(results)}\n\nTRL: {theirs.SETTINGS}.\nlit_align: {ours.SETTINGS}.")
    return int(any("missing" in result for result in results))


def measured(case: Case, texts: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """The line of a case; what went wrong where there are no numbers."""
    from benchmarks.vs_trl.measure import measure

    print(f"{case.name} ...", file=sys.stderr, flush=True)
    try:
        result = measure(case, texts, options.steps, options.limit, not options.no_memory)
    except (Disagreement, TimeoutError) as error:
        now = datetime.now(UTC).isoformat(timespec="minutes")
        result = {"date": now, "case": asdict(case), "name": case.name, "missing": str(error), "load": os.getloadavg()[0]}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
    return result


def sweep(options: argparse.Namespace) -> int:
    """Print seconds of a step along one axis, and the exponent of each side."""
    options.no_memory = True
    texts = stories()
    found = [(case, measured(case, texts, options)) for case in swept(options.sweep, cases(options)[0])]
    print(f"\n{report.table([result for _, result in found])}\n")
    there = [(along(options.sweep, case, result["parameters"]), result["sides"]) for case, result in found if "missing" not in result]
    for side in ("trl", "ours") if len(there) > 1 else ():
        exponent = slope([x for x, _ in there], [sides[side]["cpu"] for _, sides in there])
        print(f"{side}: processor time of a step grows with {options.sweep} to the power of {exponent:.2f} ({len(there)} points)")
    return int(len(there) < len(found))


def write_page() -> int:
    """The latest line of every case of the page."""
    names = {case.name for case in everything()}
    results = [result for result in report.latest(RESULTS) if result["name"] in names]
    if not results:
        raise UserError(f"There are no results in {RESULTS}: run `python -m benchmarks.vs_trl --all` first.")
    report.write_page(PAGE, results)
    print(f"{len(results)} of {len(names)} cases are in {PAGE}.")
    return 0


def print_peak(side: str, case: str) -> int:
    """What `memory.peaks` reads."""
    from benchmarks.vs_trl.measure import alone

    print(alone(Case.from_json(case), stories(), side))
    return 0
