"""Fixed data as they were published, and a real pretrained policy: HH's helpful pairs and the smallest of the story models."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from lit_align.algorithms import DPO, SFT, AlignmentModule
from lit_align.data import JsonlPrompts, PreferenceDataModule
from lit_align.models import CausalPolicy
from tests.tiny import adamw, make_trainer

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif("LIT_ALIGN_DATA" not in os.environ, reason="LIT_ALIGN_DATA names no folder with the real data"),
    pytest.mark.filterwarnings("default"),  # a run says what it drops
]
TRAIN, HELD_OUT = 192, 64


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Pairs to train on and others to be measured on, of which no first question is in both."""
    lines = (Path(os.environ["LIT_ALIGN_DATA"]) / "hh_helpful_base" / "dev.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [row for row in map(json.loads, lines) if len(row["prompt"]) + max(len(row["chosen"]), len(row["rejected"])) < 260]
    by_question: dict[str, list[Any]] = {}
    for row in rows:
        by_question.setdefault(row["prompt"].split("\n\nAssistant:")[0], []).append(row)
    ordered = [row for group in by_question.values() for row in group]
    cut = next(
        i
        for i in range(HELD_OUT, len(ordered))
        if ordered[i]["prompt"].split("\n\nAssistant:")[0] != ordered[i - 1]["prompt"].split("\n\nAssistant:")[0]
    )
    folder = tmp_path_factory.mktemp("pairs")
    for name, part in (("held_out", ordered[:cut]), ("train", ordered[cut : cut + TRAIN])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part), encoding="utf-8")
    return str(folder / "train.jsonl"), str(folder / "held_out.jsonl")


def before_and_after(
    module: AlignmentModule, files: tuple[str, str], root: Path, epochs: int, each: int = 64
) -> tuple[dict[str, float], dict[str, float]]:
    """Of the second file, around training on the first one, ``each`` pairs an epoch."""
    train, held_out = map(JsonlPrompts, files)
    data = PreferenceDataModule(train, held_out, prompts_per_rollout=each, micro_batch_prompts=16, max_response_tokens=96)
    trainer = make_trainer(root, max_epochs=epochs, check_val_every_n_epoch=epochs, accumulate_grad_batches=1)
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    after = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
    print(type(module).__name__, before, after)
    return dict(before), after


def policy() -> CausalPolicy:
    return CausalPolicy(str(Path(os.environ["LIT_ALIGN_DATA"]) / "stories260K"))


def test_sft_lowers_the_held_out_loss(files: tuple[str, str], tmp_path: Path) -> None:
    before, after = before_and_after(SFT(policy(), optimizer=adamw(2e-3)), files, tmp_path, 3)
    assert after["val/loss"] < before["val/loss"] - 0.3


def test_offline_dpo_learns_the_pairs_that_it_sees(files: tuple[str, str], tmp_path: Path) -> None:
    """That much and no more: after 12 steps on 192 pairs at 3e-4, 52 % of 64 held-out pairs were ordered as people had them, which is
    chance. The policy has 260 thousand weights and knows stories; people agree on these labels at about 63 %."""
    train, _ = files
    few = tmp_path / "few.jsonl"
    few.write_text("".join(Path(train).read_text(encoding="utf-8").splitlines(keepends=True)[:32]), encoding="utf-8")
    before, after = before_and_after(DPO(policy(), beta=0.1, optimizer=adamw(1e-3)), (str(few), str(few)), tmp_path, 4, 32)
    assert before["val/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert after["val/loss"] < before["val/loss"] - 0.03
    assert after["val/accuracy"] > 0.6
