"""Stop strings in a run: the annotator reads texts without them, they cost no penalty, and a resume draws the same."""

from pathlib import Path
from typing import Any

import torch

from lit_align.generation import CacheSampler
from lit_align.types import Annotation, Rollouts
from tests.wheel.harness import Fit, Scores, differing, fit

EOS = 1
STOP = ["a", "bc"]
DATA: dict[str, Any] = {"sampler": CacheSampler(8, stop=STOP), "missing_eos_penalty": 3.0, "chunk_prompts": 2}


class Reads(Scores):
    """Remembers what it read."""

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []

    def annotate(self, rollouts: Rollouts) -> Annotation:
        self.read += [text for texts in rollouts.texts for text in texts]
        return super().annotate(rollouts)


def run(root: Path, model: str, epochs: int, **options: Any) -> tuple[Fit, Reads]:
    annotator = Reads()
    options = {"trainer": {"max_epochs": epochs, "enable_checkpointing": False}, "annotator": annotator} | DATA | options
    return fit(root, model, **options), annotator


def test_a_stopped_response_is_finished_and_pays_nothing(root: Path, tiny: str) -> None:
    whole, annotator = run(root, tiny, 2)
    rollouts, annotation, batch = whole.recorder.rollouts[0], whole.recorder.annotations[0], whole.recorder.batches[0]
    by_text = rollouts.finished & ~(rollouts.response_tokens == EOS).any(-1)
    assert by_text.any()
    assert not rollouts.finished.all()
    assert torch.equal(annotation.scores - batch.scores, 3.0 * (~rollouts.finished).float())
    assert annotator.read
    assert not any(stop in text for text in annotator.read for stop in STOP)


def test_a_resume_goes_on_to_the_bit_and_asks_for_nothing_again(root: Path, tiny: str) -> None:
    whole, annotator = run(root / "whole", tiny, 3)
    first, begun = run(root / "halved", tiny, 2)
    first.trainer.save_checkpoint(root / "half.ckpt")
    second, rest = run(root / "halved", tiny, 3, ckpt_path=root / "half.ckpt")
    assert differing(whole.state, second.state) == []
    assert begun.read + rest.read == annotator.read
    again, silent = run(root / "halved", tiny, 3)  # from the beginning, with the journal's labels
    assert differing(whole.state, again.state) == []
    assert silent.read == []
