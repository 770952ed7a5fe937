"""Pictures of what an evaluation found."""

import torch
from PIL import Image, ImageDraw
from torch import Tensor

SIZE, EDGE = 320, 40  # pixels: of the square between 1/2 and 1, around it
BAR, LINE, DOT = (150, 180, 220), (120, 120, 120), (200, 60, 40)


def reliability_diagram(count: Tensor, sure: Tensor, right: Tensor) -> Tensor:
    """Accuracy against mean confidence, as an image ``[3, height, width]`` of bytes.

    A bar is the share of pairs in its bin, a dot the share of them that the model got right, at the mean of its confidence; the
    diagonal is a calibrated model. Both axes go from 1/2 to 1; accuracy below 1/2 is drawn at the lower edge.

    Args:
        count, sure, right: number of pairs, sums of confidence and of right ones by bin of confidence from 1/2 to 1, ``[bins]``.
    """
    image = Image.new("RGB", (SIZE + 2 * EDGE, SIZE + 2 * EDGE), "white")
    draw, width = ImageDraw.Draw(image), SIZE / len(count)
    bottom = EDGE + SIZE
    for i, share in enumerate((count / count.sum()).tolist()):
        draw.rectangle((EDGE + i * width, bottom - share * SIZE, EDGE + (i + 1) * width, bottom), fill=BAR)
    draw.rectangle((EDGE, EDGE, bottom, bottom), outline=LINE)
    draw.line((EDGE, bottom, bottom, EDGE), fill=LINE)
    for pairs, x, y in zip(count.tolist(), (sure / count).tolist(), (right / count).tolist(), strict=True):
        if pairs:
            left, top = EDGE + (x - 0.5) * 2 * SIZE, bottom - max(y - 0.5, 0.0) * 2 * SIZE
            draw.ellipse((left - 4, top - 4, left + 4, top + 4), fill=DOT)
    for x, y, text in ((EDGE, bottom + 4, "0.5"), (bottom - 10, bottom + 4, "1"), (EDGE - 24, EDGE, "1")):
        draw.text((x, y), text, fill="black")
    draw.text((EDGE + SIZE // 3, bottom + 16), "confidence", fill="black")
    draw.text((EDGE, EDGE - 20), f"accuracy (dots), share of {int(count.sum())} pairs (bars)", fill="black")
    return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image.height, image.width, 3).permute(2, 0, 1)
