"""What is counted, and from where to where."""

import json

import pytest
import torch

from callbacks import Histograms
from lit_align.types import UserError
from tests.callbacks.doubles import Module, make_rollout, make_stage

VALID = torch.tensor([[True, False, True], [True, True, True]])


def written(tmp_path, rollout, number=12, **options):
    """Tag to (how many, lowest edge, highest edge)."""
    Histograms(**options).on_rollout_end(make_stage(tmp_path, number), Module(), *rollout, {})  # type: ignore[arg-type]
    files = {folder.name: folder / f"rollout-{number:06d}.json" for folder in sorted((tmp_path / "histograms").glob("*"))}
    read = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items()}
    return {name: (sum(found["counts"]), found["edges"][0], found["edges"][-1]) for name, found in read.items()}


def test_valid_scores_and_ratios_and_every_length(tmp_path):
    scores = torch.tensor([[1.0, 99.0, -2.0], [0.0, 0.5, 3.0]])
    logps, reference = -torch.ones(2, 3, 4), -torch.ones(2, 3, 4)
    logps[0, 0, :2], reference[1, 2, 3], reference[0, 1, 0] = 0.0, -4.0, -50.0  # 2 nats, 3 nats, and 49 that are not valid
    mask = torch.ones(2, 3, 4, dtype=torch.bool)
    mask[0, 1, 1:] = False
    rollouts, annotation, batch = make_rollout(scores, VALID, logps=logps, reference=reference)
    rollouts = type(rollouts)(**{n: getattr(rollouts, n) for n in type(rollouts).__dataclass_fields__} | {"response_mask": mask})
    assert written(tmp_path, (rollouts, annotation, batch)) == {
        "kl-reference_distribution": (5, 0.0, 3.0),
        "response-length_distribution": (6, 1.0, 4.0),
        "reward-distribution": (5, -2.0, 3.0),
    }


def test_without_a_reference_there_is_no_divergence(tmp_path):
    assert written(tmp_path, make_rollout(torch.tensor([[1.0, 2.0]]))).keys() == {"response-length_distribution", "reward-distribution"}


@pytest.mark.parametrize(("number", "count"), [(0, 2), (11, 0), (12, 2)])
def test_every_so_many_rollouts(tmp_path, number, count):
    assert len(written(tmp_path, make_rollout(torch.tensor([[1.0, 2.0]])), number, every_n_rollouts=4)) == count


def test_it_counts_from_one():
    with pytest.raises(UserError, match=r"counts from 1, got every_n_rollouts = 0"):
        Histograms(every_n_rollouts=0)
