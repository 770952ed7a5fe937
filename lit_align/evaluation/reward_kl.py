"""What divergence buys: score against the square root of KL to the reference, rollout by rollout, of one or several runs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from PIL import Image, ImageDraw

WIDTH, HEIGHT, LEFT, EDGE = 720, 480, 80, 40  # pixels: of the picture, of the margin that has the scale, of the others
COLOURS = ("#1f5fa8", "#d1442c", "#2e8b57", "#8a5bb0", "#c98a1b", "#3aa3b0", "#7a7a7a", "#b04a7a")
GRID = "#d8d8d8"


@final
@dataclass(frozen=True, slots=True)
class Curve:
    """Of one run: ``roots``, the square roots of KL in nats, the ``scores`` there, and the ``rollouts`` at which both were logged.

    ``slope`` and ``intercept`` are those of the least-squares line of scores over roots: while a policy is optimised against a proxy
    the score grows about linearly in the root of KL (Training a Helpful and Harmless Assistant with Reinforcement Learning from Human
    Feedback, https://arxiv.org/abs/2204.05862). None where there are not two different roots.
    """

    rollouts: tuple[int, ...]
    roots: tuple[float, ...]
    scores: tuple[float, ...]
    slope: float | None
    intercept: float | None


def curve(divergences: Mapping[int, float], scores: Mapping[int, float]) -> Curve:
    """The rollouts at which both are known, in their order.

    Args:
        divergences: rollout -> estimate of KL in nats; one that is negative, as an estimate may be, is drawn at 0.
        scores: rollout -> score.

    >>> line = curve({0: -0.01, 1: 1.0, 2: 4.0}, {0: 1.0, 1: 3.0, 2: 5.0, 3: 9.0})
    >>> line.roots, round(line.slope, 6), round(line.intercept, 6)
    ((0.0, 1.0, 2.0), 2.0, 1.0)
    """
    both = [r for r in sorted({*divergences} & {*scores}) if math.isfinite(divergences[r]) and math.isfinite(scores[r])]
    roots, values = [math.sqrt(max(divergences[r], 0.0)) for r in both], [scores[r] for r in both]
    slope = intercept = None
    if len({*roots}) > 1:
        x, y = torch.tensor(roots, dtype=torch.float64), torch.tensor(values, dtype=torch.float64)
        slope = float(((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum())
        intercept = float(y.mean()) - slope * float(x.mean())
    return Curve(tuple(both), tuple(roots), tuple(values), slope, intercept)


def drawn(curves: Mapping[str, Curve], score: str) -> Image.Image:
    """A picture: the points of every run joined in the order of rollouts, from its first, which is marked by a square.

    Args:
        curves: name of a run -> its points, at least one altogether.
        score: what the upward axis says.
    """
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    across = ticks(0.0, max(x for line in curves.values() for x in line.roots))
    upward = ticks(min(y for line in curves.values() for y in line.scores), max(y for line in curves.values() for y in line.scores))

    def place(x: float, y: float) -> tuple[float, float]:
        return (
            LEFT + (x - across[0]) / (across[-1] - across[0]) * (WIDTH - LEFT - EDGE),
            HEIGHT - EDGE - (y - upward[0]) / (upward[-1] - upward[0]) * (HEIGHT - 2 * EDGE),
        )

    for x in across:
        draw.line((*place(x, upward[0]), *place(x, upward[-1])), fill=GRID)
        draw.text((place(x, 0)[0] - 8, HEIGHT - EDGE + 6), f"{x:g}", fill="black")
    for y in upward:
        draw.line((*place(across[0], y), *place(across[-1], y)), fill=GRID)
        draw.text((LEFT - 50, place(0, y)[1] - 6), f"{y:g}", fill="black")
    draw.text((WIDTH // 2 - 60, HEIGHT - 18), "square root of KL to the reference, nats", fill="black")
    draw.text((LEFT - 50, 12), score, fill="black")
    for i, (name, line) in enumerate(curves.items()):
        colour, points = COLOURS[i % len(COLOURS)], [place(x, y) for x, y in zip(line.roots, line.scores, strict=True)]
        draw.line(points, fill=colour, width=2)
        for n, (x, y) in enumerate(points):
            (draw.ellipse if n else draw.rectangle)((x - 3, y - 3, x + 3, y + 3), fill=colour)
        draw.text((LEFT + 12, EDGE + 8 + 16 * i), name, fill=colour)
    return image


def ticks(low: float, high: float) -> Sequence[float]:
    """Three to eight round numbers from ``low`` or below to ``high`` or above.

    >>> ticks(0.0, 2.3)
    [0.0, 0.5, 1.0, 1.5, 2.0, 2.5]
    """
    span = (high - low) or 1.0
    unit = 10.0 ** math.floor(math.log10(span))
    step = next(unit * factor for factor in (0.2, 0.5, 1.0, 2.0) if span / (unit * factor) <= 5.5)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(n * step, 12) for n in range(first, max(last, first + 1) + 1)]
