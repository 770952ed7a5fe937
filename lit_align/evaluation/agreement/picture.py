"""Agreement and kappa of every subset, and how far a judge's confidence can be taken at its word, as one picture."""

from collections.abc import Mapping, Sequence

import torch
from PIL import Image, ImageDraw

from lit_align.evaluation.agreement.intervals import Estimate
from lit_align.evaluation.agreement.measures import BINS
from lit_align.evaluation.agreement.report import AgreementReport, ReliabilityBin
from lit_align.evaluation.drawing import LINE, reliability_diagram

NAMES, WIDTH, ROW, EDGE = 260, 320, 34, 40  # pixels: of the names, of the axis from 0 to 1, of a row, around
COLOURS = {"agreement": (40, 90, 180), "kappa": (200, 60, 40)}


def agreement_picture(reports: Mapping[str, AgreementReport]) -> Image.Image:
    """One row per report, a dot with its interval for agreement and one for kappa, which below 0 is drawn at the left edge; on the
    right the reliability diagram of the first report, if its judge gives probabilities."""
    height = EDGE + ROW * len(reports)
    left = Image.new("RGB", (NAMES + WIDTH + 2 * EDGE, height + EDGE), "white")
    draw, start = ImageDraw.Draw(left), EDGE + NAMES
    for tenths in range(0, 11, 2):
        x = start + tenths / 10 * WIDTH
        draw.line((x, EDGE, x, height), fill=LINE if tenths in (0, 10) else (225, 225, 225))
        draw.text((x - 8, height + 4), f"{tenths / 10:.1f}", fill="black")
    for column, (name, colour) in enumerate(COLOURS.items()):
        draw.text((start + column * 90, EDGE - 20), name, fill=colour)
        for row, report in enumerate(reports.values()):
            _dot(draw, report.measures[name], start, EDGE + ROW * row + ROW * (column + 1) / 3, colour)
    for row, (name, report) in enumerate(reports.items()):
        draw.text((EDGE, EDGE + ROW * row + ROW / 3), f"{name} ({report.pairs})", fill="black")
    bins = next(iter(reports.values())).reliability
    return _beside(left, reliability_image(bins)) if bins else left


def reliability_image(bins: Sequence[ReliabilityBin]) -> Image.Image:
    """The reliability diagram of these bins."""
    table = torch.zeros(3, BINS, dtype=torch.float64)
    for one in bins:
        table[:, round((one.low - 0.5) * 2 * BINS)] = torch.tensor([1, one.confidence, one.accuracy], dtype=torch.float64) * one.pairs
    return Image.fromarray(reliability_diagram(table[0], table[1], table[2]).permute(1, 2, 0).numpy())


def _dot(draw: ImageDraw.ImageDraw, found: Estimate, start: int, y: float, colour: tuple[int, int, int]) -> None:
    def at(value: float) -> float:
        return start + min(max(value, 0.0), 1.0) * WIDTH

    if found.value is None:
        return
    if found.low is not None and found.high is not None:
        draw.line((at(found.low), y, at(found.high), y), fill=colour, width=2)
    draw.ellipse((at(found.value) - 4, y - 4, at(found.value) + 4, y + 4), fill=colour)


def _beside(left: Image.Image, right: Image.Image) -> Image.Image:
    both = Image.new("RGB", (left.width + right.width, max(left.height, right.height)), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width, 0))
    return both
