"""What ``make bench`` measures: the lines of the page, then four sweeps, each with as many steps as it needs."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from benchmarks.vs_trl.case import ALGORITHMS, ONLINE, Case, published
from benchmarks.vs_trl.targets import LINES

STEPS, STEPS_OF_A_TARGET, STEPS_OF_DAR, STEPS_OF_A_SWEEP = 4, 8, 16, 2  # the nearer a ratio may be to what is wanted of it, the more
Axis = Literal["k", "length", "batch", "size"]
AXES: tuple[Axis, ...] = get_args(Axis)


@dataclass(frozen=True)
class Planned:
    """A case, how many steps of each side are timed, and whether peak memory is measured too."""

    case: Case
    steps: int
    memory: bool


def planned(case: Case) -> Planned:
    """A line of its own. Both sides of DAR's are lit_align's, and hold the same things in memory."""
    dar = case.algorithm == "dar"
    return Planned(case, STEPS_OF_DAR if dar else STEPS_OF_A_TARGET if case in LINES else STEPS, memory=not dar)


def everything(threads: int = 2) -> list[Planned]:
    """All of it, the most important first, each case once; ``threads`` of the larger model."""
    rloo, names = swept_case(), (*ALGORITHMS, "dar")
    cases = [published(algorithm, "5m", 1) for algorithm in names]
    cases += [replace(published(algorithm, "5m", 1), forced=True) for algorithm in ONLINE]
    cases += [replace(rloo, k=k) for k in (2, 16)]
    cases += [replace(rloo, prompt_tokens=256), replace(rloo, response_tokens=256)]
    cases += [published(algorithm, "25m", threads) for algorithm in ALGORITHMS]
    cases += [replace(published(algorithm, "25m", threads), forced=True) for algorithm in ONLINE]
    return once([*map(planned, cases), *(point for axis in AXES for point in sweep(axis, rloo))])


def swept_case() -> Case:
    """What the sweeps of the page begin from."""
    return published("rloo", "5m", 1)


def sweep(axis: Axis, case: Case) -> list[Planned]:
    """The points of `swept`."""
    return [Planned(point, STEPS_OF_A_SWEEP, memory=False) for point in swept(axis, case)]


def once(lines: Iterable[Planned]) -> list[Planned]:
    """Without those whose case came before: sweeps cross in a point, which is a line of the page too."""
    found: dict[Case, Planned] = {}
    for line in lines:
        found.setdefault(line.case, line)
    return list(found.values())


def swept(axis: Axis, case: Case) -> list[Case]:
    """``case`` at growing values of one axis, everything else as it is; lengths are forced, so that only the axis moves."""
    case = replace(case, forced=case.online)
    match axis:
        case "k":
            return [replace(case, k=k) for k in (2, 4, 8, 16)]
        case "length":
            return [replace(case, response_tokens=tokens) for tokens in (32, 64, 128, 256)]
        case "batch":
            return [replace(case, prompts=prompts) for prompts in (4, 8, 16, 32)]
        case "size":
            return [replace(case, model=model) for model in ("1m", "5m", "12m", "25m")]


def along(axis: Axis, case: Case, parameters: int) -> float:
    """Where ``case`` is on the axis; ``parameters`` of its model."""
    return {"k": case.k, "length": case.response_tokens, "batch": case.prompts, "size": parameters}[axis]
