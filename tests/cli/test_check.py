"""A rehearsal of a fit: what it shows, what it leaves alone."""

import json
import sys
import time
from pathlib import Path

import pytest
import torch

from lit_align.cli import main
from lit_align.quickstart.model import make_initial_policy
from lit_align.quickstart.world import write_world
from tests.cli.shipped import CONFIGS, OWN, ROOT, SMALL
from tests.tiny import PROMPTS, write_prompts


def everything(folder: Path) -> dict[Path, bytes]:
    """Every file and what is in it."""
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts}


def test_it_shows_an_annotated_prompt_and_counts_the_labels(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = everything(world)
    logger = ["--trainer.logger=lightning.pytorch.loggers.CSVLogger"]
    callbacks = ["--config", str(CONFIGS / "callbacks/default.yaml")]
    main(["check", *OWN, *callbacks, *logger, "--trainer.max_epochs=7", "--run=runs/mine"])
    said = capsys.readouterr().out
    assert "Config, files and model are fine." in said
    assert "One training step was taken: loss " in said
    assert f"Prompts: {len(PROMPTS)} of {len(PROMPTS)}; 0.0% are too long and dropped." in said
    assert "Labels: at most 224 (7 rollouts x 8 prompts x 4 responses)." in said
    assert everything(world) == before  # no run folder, no log, no file
    lines = said.splitlines()
    start = next(i for i, line in enumerate(lines) if "prompts were answered and annotated, the first of them: " in line)
    assert lines[start].startswith("4 prompts ")
    assert lines[start].split(": ", 1)[1][1:-1] in PROMPTS
    rows = [line.split(maxsplit=1) for line in lines[start + 1 : start + 5]]
    for score, text in rows:  # the annotator's own numbers
        assert float(score) == sum(letter in "aei" for letter in text)


def test_it_asks_for_the_labels_of_one_micro_batch_only(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "asked = []\ndef score(prompt, responses):\n    asked.append(len(responses))\n    return list(range(len(responses)))\n"
    (world / "my_annotator.py").write_text(source, encoding="utf-8")
    main(["check", *OWN])
    assert sys.modules["my_annotator"].asked == [4, 4, 4, 4]  # of 8 prompts in a rollout


def test_a_search_for_spread_is_counted_and_not_made(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = "asked = []\ndef score(prompt, responses):\n    asked.append(len(responses))\n    return [1.0] * len(responses)\n"
    (world / "my_annotator.py").write_text(source, encoding="utf-8")
    main(
        [
            "check",
            *OWN,
            "--model.init_args.scale=lit_align.algorithms.BatchStd",
            "--data.init_args.max_extra_prompts=5",
            "--trainer.max_epochs=7",
        ]
    )
    assert sys.modules["my_annotator"].asked == [4, 4, 4, 4]
    assert "Labels: at most 364 (7 rollouts x (8 + 5 extra) prompts x 4 responses)." in capsys.readouterr().out


def test_a_run_that_goes_on_is_not_touched(world: Path) -> None:
    main(["fit", *OWN, "--trainer.max_epochs=1", "--run=runs/a"])
    before = everything(world)
    main(["check", *OWN, "--run=runs/a"])
    assert everything(world) == before


def test_the_share_of_long_prompts(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_prompts(world / "prompts.jsonl", [*PROMPTS, *(["abcd " * 20] * 4)])
    with pytest.warns(UserWarning, match="dropped"):
        main(["check", *OWN])
    assert "Prompts: 16 of 20; 20.0% are too long and dropped." in capsys.readouterr().out


def test_a_run_without_an_end(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", *OWN, "--trainer.max_epochs=-1"])
    assert "Labels: 32 in every rollout, and no end: set trainer.max_epochs." in capsys.readouterr().out


def test_equal_scores_are_pointed_out(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "my_annotator.py").write_text("def score(prompt, responses):\n    return [1.0] * len(responses)\n", encoding="utf-8")
    main(["check", *OWN, "--model.init_args.scale=lit_align.algorithms.BatchStd"])
    assert "No prompt's responses got different scores" in capsys.readouterr().out


def test_supervised_runs_ask_for_no_labels(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": prompt, "response": "a b c"} for prompt in PROMPTS]
    (world / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (world / "mine.yaml").write_text(
        "model: {init_args: {policy: {class_path: CausalPolicy, init_args: {path: my-model}}}}\n"
        "data: {init_args: {max_response_tokens: 16, prompts: "
        "{class_path: JsonlPrompts, init_args: {path: prompts.jsonl, reference_field: response}}}}\n"
        "trainer: {accelerator: cpu}\n",
        encoding="utf-8",
    )
    main(["check", "--config", str(CONFIGS / "algorithm/sft.yaml"), "--config=mine.yaml"])
    assert "Labels: none, this algorithm samples nothing." in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--model.init_args.policy.init_args.path=nowhere", "policy: no model at 'nowhere'"),
        ("--data.init_args.prompts.init_args.path=none.jsonl", "none.jsonl"),
        ("--data.init_args.responses_per_prompt=1", "needs at least 2 of them"),
        ("--trainer.max_epohs=1", "Did you mean 'max_epochs'?"),
        ("--trainer.callbacks=callbacks.SampleTable", "counts from 1"),
    ],
)
def test_it_refuses_what_fit_refuses(option: str, message: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--trainer.callbacks.init_args.prompts=0"] if "SampleTable" in option else []
    with pytest.raises(SystemExit) as exit_:
        main(["check", *OWN, option, *more])
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_nothing_valid_is_an_error(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "my_annotator.py").write_text("def score(prompt, responses):\n    return ['good']\n", encoding="utf-8")
    with pytest.warns(UserWarning, match="expected one finite number"), pytest.raises(SystemExit):
        main(["check", *OWN])
    assert "The annotator gave no valid score for any of the 16 responses" in capsys.readouterr().err


def test_the_quickstart_is_checked_in_half_a_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: object) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [str(ROOT), *sys.path])
    folder = Path("runs/quickstart")
    write_world(folder / "world", 0)
    make_initial_policy(folder / "policy", ["Dear Ann, water the plants. Yours, Bob\n"], 0)
    torch.set_num_threads(1)
    started = time.perf_counter()
    files = ["algorithm/dar_anchored.yaml", "quickstart.yaml"]
    main(["check", *(f"--config={CONFIGS / file}" for file in files)])
    assert time.perf_counter() - started < 30


@pytest.mark.parametrize(
    ("design", "said"),
    [
        ("pp", "Labels: none, no row is annotated."),
        ("pr", "Labels: about 58 (12 rollouts x 8 prompts x 2 responses, of which a share of 0.3 is drawn and annotated)."),
    ],
)
def test_a_mixture_is_rehearsed_in_one_rollout_whatever_its_passes(
    design: str, said: str, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four passes over 16 pairs, of which .7 are fixed rows, 8 to a rollout."""
    files = (f"algorithm/sail_{design}.yaml", "experiment/local.yaml", "annotator/function.yaml", "data/fixed_and_fresh.yaml")
    small = ["--data.init_args.max_response_tokens=6", "--data.init_args.fixed_passes=4"]
    main(["check", *(f"--config={CONFIGS / file}" for file in files), *SMALL, *small])
    assert said in capsys.readouterr().out
