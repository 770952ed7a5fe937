"""The picture of docs/performance.md."""

from collections.abc import Mapping

from PIL import Image, ImageDraw, ImageFont

from benchmarks.vs_trl.results import Result
from benchmarks.vs_trl.rows import is_dar
from benchmarks.vs_trl.summary import Spread
from benchmarks.vs_trl.targets import LINES

WIDTH, LINE, LEFT, TOP, EDGE = 1500, 38, 560, 96, 60  # pixels: of the picture, of a line, left of the bars, above them, around
WORDS, TICKS = ImageFont.load_default(22), ImageFont.load_default(18)
BAR, MISSED, RANGE, GRID = (150, 180, 220), (235, 175, 150), (60, 60, 60), (215, 215, 215)
MARKS = {"must": (190, 60, 40), "bar": (210, 150, 0), "goal": (30, 130, 60)}


def picture(results: Mapping[str, Result]) -> Image.Image:
    """A bar per case beside TRL: the median ratio of processor time per token, its range a line, and a mark at each target."""
    found = [result for result in results.values() if "missing" not in result and not is_dar(result)]
    wanted = {case.name: aims for case, aims in LINES.items()}
    ends = [result["ratio"]["cpu"]["high"] for result in found] + [wanted[r["name"]].goal for r in found if r["name"] in wanted]
    unit = (WIDTH - LEFT - 2 * EDGE) / max(ends, default=1.0)
    image = Image.new("RGB", (WIDTH, TOP + EDGE + LINE * len(found)), "white")
    draw, bottom = ImageDraw.Draw(image), TOP + LINE * len(found)
    draw.text((16, 14), "Processor time per response token, TRL / lit_align: median and range", fill="black", font=WORDS)
    at = 16.0
    for name, colour in MARKS.items():
        draw.line((at, 54, at, 76), fill=colour, width=5)
        draw.text((at + 10, 52), name, fill="black", font=TICKS)
        at += 90
    draw.text((at, 52), "targets of a line; a red bar misses the first", fill="black", font=TICKS)
    for tick in range(int(max(ends, default=1.0)) + 1):
        draw.line((LEFT + tick * unit, TOP - 8, LEFT + tick * unit, bottom + 8), fill=RANGE if tick == 1 else GRID, width=2)
        draw.text((LEFT + tick * unit, bottom + 12), str(tick), fill="black", font=TICKS, anchor="ma")
    for i, result in enumerate(found):
        y, spread, aims = TOP + i * LINE, Spread(**result["ratio"]["cpu"]), wanted.get(result["name"])
        missed = aims is not None and spread.median < aims.must
        draw.text((LEFT - 16, y + LINE // 2), result["name"], fill="black", font=WORDS, anchor="rm")
        draw.rectangle((LEFT, y + 6, LEFT + spread.median * unit, y + LINE - 6), fill=MISSED if missed else BAR)
        for name, colour in MARKS.items() if aims is not None else ():
            x = LEFT + getattr(aims, name) * unit
            draw.line((x, y + 3, x, y + LINE - 3), fill=colour, width=5)
        draw.line((LEFT + spread.low * unit, y + LINE // 2, LEFT + spread.high * unit, y + LINE // 2), fill=RANGE, width=3)
        end = max(spread.high, aims.goal if aims is not None else 0.0)
        draw.text((LEFT + end * unit + 12, y + LINE // 2), f"{spread.median:.2f}", fill="black", font=WORDS, anchor="lm")
    return image
