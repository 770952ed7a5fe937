"""Prompts of like length are answered together, so that little of a chunk is padding; what comes of them is in the prompts' order."""

from collections.abc import Iterable, Sequence

from lit_align.data.collate import join
from lit_align.types import Annotation, EncodedPrompt, Rollouts


def alike(prompts: Sequence[EncodedPrompt], size: int) -> tuple[list[list[EncodedPrompt]], list[int]]:
    """Chunks of at most ``size`` prompts, and the place of every prompt in them, counted over all. A single chunk is as it was; of
    several the longest prompts come first, so that memory runs out early or never."""
    order = list(range(len(prompts)))
    if len(prompts) > size:
        order.sort(key=lambda i: -len(prompts[i].tokens))
    chunks = [[prompts[i] for i in order[start : start + size]] for start in range(0, len(prompts), size)]
    return chunks, sorted(range(len(order)), key=order.__getitem__)


def joined(answered: Iterable[tuple[Rollouts, Annotation]], places: Sequence[int]) -> tuple[Rollouts, Annotation]:
    """What was answered and said in all chunks, one row for each of these ``places``."""
    rollouts, annotations = zip(*answered, strict=True)
    return join(rollouts).rows(places), join(annotations).rows(places)
