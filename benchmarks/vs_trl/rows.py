"""Rows of the tables, and what stands above them."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.vs_trl import targets
from benchmarks.vs_trl.parts import LOOP, PARTS
from benchmarks.vs_trl.summary import Spread

HEADER = [
    "",
    "TRL / lit_align, CPU per token",
    "by the clock",
    "n",
    "tokens a response",
    "s a step",
    "by the clock",
    "tokens a second",
    "times the floor",
    "peak MiB, and ours by TRL's",
    "load",
]
DAR = [
    "",
    "DAR / RLOO, CPU per token",
    "by the clock",
    "n",
    "tokens a response",
    "s a step",
    "by the clock",
    f"at most {targets.DAR}",
    "median, 95 %",
    "load",
]
TARGETS = [
    "",
    "TRL / lit_align",
    "must / bar / goal",
    "reached",
    f"times the floor, at most {targets.FLOORS}",
    f"peak memory by TRL's, at most {targets.MEMORY}",
    f"loop and data, below {targets.LOOP:.0%}",
]
PROFILE = ["seconds of a step", "all", *PARTS, LOOP]
SWEEPS = ["axis", "from", "at", "TRL", "lit_align", "TRL / lit_align, CPU per token"]
MACHINE = ["model", "threads", "GEMM, GFLOP/s", "reads, GB/s", "weights", "code"]


def is_dar(result: Mapping[str, Any]) -> bool:
    """Whether both sides are lit_align's."""
    return result["case"]["algorithm"] == "dar"


def spread(result: Mapping[str, Any], clock: str) -> str:
    """The ratio, with its range."""
    return Spread(**result["ratio"][clock]).text()


def line(result: Mapping[str, Any]) -> list[str]:
    """TRL beside lit_align."""
    if "missing" in result:
        return _missing(result, HEADER)
    peaks = [f"{result['memory'][side]:.0f}" if side in result["memory"] else "?" for side in ("trl", "ours")]
    share = memory_share(result)
    memory = " / ".join(peaks) + ("" if share is None else f", {share:.2f}")
    return [*_timed(result), _both(result, "tokens_per_second", ".0f"), _both(result, "floors", ".1f"), memory, f"{result['load']:.1f}"]


def dar_line(result: Mapping[str, Any]) -> list[str]:
    """DAR beside RLOO."""
    if "missing" in result:
        return _missing(result, DAR)
    ratio, between = result["ratio"]["cpu"]["median"], result["between"]
    median = "?" if between is None else f"{between[0]:.3f}-{between[1]:.3f}"
    return [*_timed(result), targets.limited(ratio, targets.DAR, f"{ratio:.3f}"), median, f"{result['load']:.1f}"]


def aims_line(result: Mapping[str, Any] | None, name: str, aims: targets.Aims) -> list[str]:
    """What was wanted, and whether it is there; ``result`` is None where nothing was measured."""
    wanted = " / ".join(f"{value:g}" for value in aims)
    if result is None:
        return [name, "not measured", wanted, *["?"] * 4]
    floors, share = result["sides"]["ours"]["floors"], memory_share(result)
    loop = Spread(**result["loop"]["ours"]) if "loop" in result else None
    return [
        name,
        spread(result, "cpu"),
        wanted,
        targets.reached(result["ratio"]["cpu"]["median"], aims),
        targets.limited(floors, targets.FLOORS, f"{floors:.2f}"),
        targets.limited(share, targets.MEMORY, f"{share:.2f}" if share is not None else ""),
        "?" if loop is None else targets.limited(loop.median, targets.LOOP, f"{loop.median:.1%} ({loop.low:.1%}-{loop.high:.1%})"),
    ]


def profile_line(result: Mapping[str, Any], side: str) -> list[str]:
    """Seconds of each part of one side's step, and its share."""
    parts = result["parts"][side]
    whole = sum(parts.values())
    cells = [f"{parts[part]:.3f} ({parts[part] / whole:.1%})" if part in parts else "" for part in (*PARTS, LOOP)]
    return [result["name"] + (f": {side}" if is_dar(result) else ""), f"{whole:.3f}", *cells]


def machine(result: Mapping[str, Any]) -> tuple[str, str]:
    """Model and threads."""
    return result["case"]["model"], str(result["case"]["threads"])


def machine_cells(results: Sequence[Mapping[str, Any]]) -> list[str]:
    """What lines of one model and as many threads had: ranges of speeds, and all weights and codes."""
    speeds = [[result["machine"][name] / 1e9 for result in results] for name in ("flops", "bytes")]
    hashes = [sorted({str(result.get(name, "?")) for result in results}) for name in ("weights", "code")]
    return [*(f"{min(found):.0f}-{max(found):.0f}" for found in speeds), *(", ".join(f"`{one}`" for one in found) for found in hashes)]


def memory_share(result: Mapping[str, Any]) -> float | None:
    """lit_align's peak by TRL's; None where one of them is not known."""
    memory = result["memory"]
    return memory["ours"] / memory["trl"] if {"ours", "trl"} <= memory.keys() else None


def _timed(result: Mapping[str, Any]) -> list[str]:
    """What both kinds of lines begin with."""
    responses = result["case"]["prompts"] * result["case"]["k"]
    lengths = " / ".join(f"{side['tokens'] / responses:.0f}" for side in result["sides"].values())
    return [
        result["name"],
        spread(result, "cpu"),
        spread(result, "wall"),
        str(result["n"]),
        lengths,
        *(_both(result, clock, ".2f") for clock in ("cpu", "wall")),
    ]


def _both(result: Mapping[str, Any], name: str, form: str) -> str:
    return " / ".join(f"{side[name]:{form}}" for side in result["sides"].values())


def _missing(result: Mapping[str, Any], header: Sequence[str]) -> list[str]:
    return [result["name"], f"missing: {result['missing']}", *[""] * (len(header) - 2)]
