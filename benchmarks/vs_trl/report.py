"""Tables and a picture of the file of results, for docs/performance.md."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from benchmarks.runs import markdown
from benchmarks.vs_trl.summary import Spread

HEADER = [
    "",
    "TRL / lit_align, CPU per token",
    "by the clock",
    "n",
    "tokens a response",
    "s a step",
    "tokens a second",
    "times the floor",
    "peak MiB",
    "load",
]
MACHINE = ["", "GEMM, GFLOP/s", "reads, GB/s", "weights"]
BEGIN, END = "<!-- table: python -m benchmarks.vs_trl --page -->", "<!-- end of table -->"
WIDTH, LINE, LEFT, EDGE = 900, 26, 330, 30  # pixels: of the picture, of a line, of the names, around it
BAR, RANGE = (150, 180, 220), (60, 60, 60)


def latest(file: Path) -> list[dict[str, Any]]:
    """The last line of each case, in the order in which cases were first measured."""
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.is_file() else []
    return list({line["name"]: line for line in lines}.values())


def table(results: Sequence[Mapping[str, Any]]) -> str:
    """A line per case; two numbers in a cell are TRL's and lit_align's."""
    return markdown(HEADER, [row(result) for result in results])


def row(result: Mapping[str, Any]) -> list[str]:
    """A case that could not be measured says why."""
    if "missing" in result:
        return [result["name"], f"missing: {result['missing']}", *[""] * (len(HEADER) - 2)]
    sides = [result["sides"][side] for side in ("trl", "ours")]
    peaks = [f"{result['memory'][side]:.0f}" if side in result["memory"] else "?" for side in ("trl", "ours")]
    ratio = {clock: Spread(**spread).text() for clock, spread in result["ratio"].items()}
    responses = result["case"]["prompts"] * result["case"]["k"]
    lengths = " / ".join(f"{side['tokens'] / responses:.0f}" for side in sides)
    numbers = ("cpu", ".2f"), ("tokens_per_second", ".0f"), ("floors", ".1f")
    cells = [lengths, *(" / ".join(f"{side[name]:{form}}" for side in sides) for name, form in numbers)]
    return [result["name"], ratio["cpu"], ratio["wall"], str(result["n"]), *cells, " / ".join(peaks), f"{result['load']:.1f}"]


def machines(results: Sequence[Mapping[str, Any]]) -> str:
    """What the floor was computed from, and which weights these were."""
    rows = [
        [result["name"], f"{result['machine']['flops'] / 1e9:.0f}", f"{result['machine']['bytes'] / 1e9:.0f}", f"`{result['weights']}`"]
        for result in results
        if "missing" not in result
    ]
    return markdown(MACHINE, rows)


def picture(results: Sequence[Mapping[str, Any]]) -> Image.Image:
    """A bar per case: the median ratio of processor time per token, its range a line, and a line at 1."""
    found = [result for result in results if "missing" not in result]
    top = max((result["ratio"]["cpu"]["high"] for result in found), default=1.0)
    unit = (WIDTH - LEFT - 2 * EDGE) / max(top, 1.0)
    image = Image.new("RGB", (WIDTH, 2 * EDGE + LINE * len(found)), "white")
    draw = ImageDraw.Draw(image)
    for i, result in enumerate(found):
        y, spread = EDGE + i * LINE, Spread(**result["ratio"]["cpu"])
        draw.text((8, y + 5), result["name"], fill="black")
        draw.rectangle((LEFT, y + 3, LEFT + spread.median * unit, y + LINE - 5), fill=BAR)
        draw.line((LEFT + spread.low * unit, y + LINE // 2, LEFT + spread.high * unit, y + LINE // 2), fill=RANGE, width=2)
        draw.text((LEFT + spread.high * unit + 6, y + 5), f"{spread.median:.2f}", fill="black")
    draw.line((LEFT + unit, EDGE - 6, LEFT + unit, EDGE + LINE * len(found)), fill=RANGE)
    draw.text((LEFT, 8), "processor time per response token, TRL / lit_align: median and range; the line is 1", fill="black")
    return image


def write_page(page: Path, results: Sequence[Mapping[str, Any]]) -> None:
    """Put table and picture of ``results`` into the page, between its two markers."""
    dates = sorted({result["date"][:10] for result in results})
    picture(results).save(page.with_suffix(".png"), optimize=True)
    made = f"{BEGIN}\nMeasured {' to '.join(dict.fromkeys((dates[0], dates[-1])))}.\n\n{table(results)}\n\n{machines(results)}\n{END}"
    text = page.read_text(encoding="utf-8")
    page.write_text(re.sub(f"{re.escape(BEGIN)}.*?{re.escape(END)}", lambda _: made, text, flags=re.DOTALL), encoding="utf-8")
