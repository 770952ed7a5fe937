"""Tables of results, for docs/performance.md and for the terminal."""

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from benchmarks.runs import markdown
from benchmarks.vs_trl import rows, settings, targets
from benchmarks.vs_trl.case import Case
from benchmarks.vs_trl.picture import picture
from benchmarks.vs_trl.plan import AXES, along, swept
from benchmarks.vs_trl.results import Result
from benchmarks.vs_trl.summary import slope

Results = Mapping[str, Result]
"""By the name of the case, in the order of the page."""

BEGIN, END = "<!-- table: python -m benchmarks.vs_trl --page -->", "<!-- end of table -->"


def text(results: Results, base: Case) -> str:
    """All tables that have a line; sweeps are those that begin from ``base``."""
    parts = (lines(results), worst(results), dar(results), aims(results), profiles(results), sweeps(results, base), machines(results))
    return "\n\n".join(part for part in parts if part)


def lines(results: Results) -> str:
    """A line per case beside TRL; two numbers in a cell are TRL's and lit_align's. A case that could not be measured says why."""
    return table(rows.HEADER, (rows.line(result) for result in results.values() if not rows.is_dar(result)))


def dar(results: Results) -> str:
    """DAR beside RLOO."""
    return table(rows.DAR, (rows.dar_line(result) for result in results.values() if rows.is_dar(result)))


def worst(results: Results) -> str:
    """The smallest ratio of all lines."""
    found = [result for result in _measured(results).values() if not rows.is_dar(result)]
    if not found:
        return ""
    least = min(found, key=lambda result: result["ratio"]["cpu"]["median"])
    return f"Worst ratio of all lines above ({len(found)}): {rows.spread(least, 'cpu')}, {least['name']}."


def aims(results: Results) -> str:
    """What was wanted of every line that there is a target for, if any of them was measured."""
    there = _measured(results)
    found = (rows.aims_line(there.get(case.name), case.name, wanted) for case, wanted in targets.LINES.items())
    return table(rows.TARGETS, found) if any(case.name in there for case in targets.LINES) else ""


def profiles(results: Results) -> str:
    """Where lit_align's time goes in the lines with a target; of DAR and of RLOO in DAR's."""
    wanted = {case.name for case in targets.LINES}
    found = [result for result in _measured(results).values() if result["name"] in wanted or rows.is_dar(result)]
    return table(rows.PROFILE, (rows.profile_line(result, side) for result in found for side in result.get("parts", {})))


def sweeps(results: Results, base: Case) -> str:
    """The exponent of each side along every axis that has two points or more."""
    there = _measured(results)
    made = []
    for axis in AXES:
        found = [(case, there[case.name]) for case in swept(axis, base) if case.name in there]
        if len(found) > 1:
            x = [along(axis, case, result["parameters"]) for case, result in found]
            exponents = [f"{slope(x, [result['sides'][side]['cpu'] for _, result in found]):.2f}" for side in base.sides]
            at = ", ".join(case.model if axis == "size" else f"{value:g}" for (case, _), value in zip(found, x, strict=True))
            made.append([axis, found[0][0].algorithm, at, *exponents, ", ".join(f"{r['ratio']['cpu']['median']:.2f}" for _, r in found)])
    return table(rows.SWEEPS, made)


def machines(results: Results) -> str:
    """What floors were computed from, which weights and which code these were: what all lines of a model had."""
    found = sorted(_measured(results).values(), key=rows.machine)
    return table(rows.MACHINE, ([*key, *rows.machine_cells(list(group))] for key, group in groupby(found, key=rows.machine)))


def table(header: Sequence[str], cells: Iterable[Sequence[str]]) -> str:
    """Nothing where there is no row."""
    found = list(cells)
    return markdown(header, found) if found else ""


def _measured(results: Results) -> Results:
    return {name: result for name, result in results.items() if "missing" not in result}


def write_page(page: Path, results: Results, base: Case) -> None:
    """Put tables and picture of ``results`` into the page, between its two markers."""
    dates = sorted({result["date"][:10] for result in results.values()})
    picture(results).save(page.with_suffix(".png"), optimize=True)
    made = f"{BEGIN}\nMeasured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.\n\n{text(results, base)}\n\n{settings.BOTH}\n{END}"
    before = page.read_text(encoding="utf-8")
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, before, flags=re.DOTALL), encoding="utf-8")
