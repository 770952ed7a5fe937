"""The bar shows both phases of the wheel, and is the only one."""

import copy

import pytest
from lightning.pytorch.callbacks import ProgressBar

from callbacks import RolloutProgressBar
from lit_align.annotators import FunctionAnnotator
from tests.callbacks.doubles import Module, fit, make_stage
from tests.tiny import make_data


def test_a_piped_run_says_what_was_sampled_and_annotated(root, model, capsys):
    trainer, _ = fit(root, model, [RolloutProgressBar()], data=make_data(chunk_prompts=4), enable_progress_bar=True)
    said = [line.split(":  ")[0].split(": 1")[0] for line in capsys.readouterr().out.split("\r")]
    first = [line for line in said if line.startswith("Rollout 0")]
    assert first == [
        "Rollout 0: sampled 0/32, annotated 0/32",
        "Rollout 0: sampled 16/32, annotated 0/32",
        "Rollout 0: sampled 16/32, annotated 16/32",
        "Rollout 0: sampled 32/32, annotated 16/32",
        "Rollout 0: sampled 32/32, annotated 32/32",
    ]
    epochs = [i for i, line in enumerate(said) if line.startswith("Epoch")]
    assert said.index(first[-1]) < epochs[0] < said.index("Rollout 1: sampled 0/32, annotated 0/32") < epochs[-1]
    assert [type(callback) for callback in trainer.callbacks if isinstance(callback, ProgressBar)] == [RolloutProgressBar]


def test_further_prompts_make_the_bar_longer(root, model, capsys):
    data = make_data(annotator=FunctionAnnotator(lambda prompt, texts: [1.0] * len(texts)), max_extra_prompts=3)
    fit(root, model, [RolloutProgressBar()], data=data, max_epochs=1, enable_progress_bar=True)
    said = [line.split("|")[0].rstrip() for line in capsys.readouterr().out.split("\r") if line.startswith("Rollout")]
    assert [line.split(": ", 1)[1] for line in said[-3:]] == [
        "sampled 32/32, annotated 32/32: 100%",
        "sampled 44/44, annotated 32/44:  86%",
        "sampled 44/44, annotated 44/44: 100%",
    ]


def test_refresh_rate_zero_says_nothing(root, model, capsys):
    fit(root, model, [RolloutProgressBar(refresh_rate=0)], max_epochs=1, enable_progress_bar=True)
    assert capsys.readouterr().out == ""


def test_other_ranks_say_nothing(tmp_path, capsys):
    bar = RolloutProgressBar()
    bar.disable()  # as ProgressBar.setup does there
    bar.on_rollout_start(make_stage(tmp_path), Module(), 0, 8)  # type: ignore[arg-type]
    bar.on_rollout_progress(make_stage(tmp_path), Module(), 8, 8)  # type: ignore[arg-type]
    assert capsys.readouterr().out == ""


def test_an_error_in_the_rollout_closes_the_bar(root, model):
    def broken(prompt, texts):
        raise KeyboardInterrupt

    bar = RolloutProgressBar()
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(root, model, [bar], data=make_data(annotator=FunctionAnnotator(broken)), enable_progress_bar=True)
    assert bar._rollout_bar is None


def test_an_open_bar_does_not_stop_a_copy(tmp_path):
    bar = RolloutProgressBar()
    bar.on_rollout_start(make_stage(tmp_path), Module(), 0, 8)  # type: ignore[arg-type]
    assert copy.deepcopy(bar)._rollout_bar is None
    bar._close()
