"""What is written is what was sampled."""

import json

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger

from callbacks import SampleTable
from callbacks._logging import log_histogram
from lit_align.types import RolloutCallback, UserError
from tests.callbacks.doubles import Module, fit, make_rollout, make_stage

MESSAGES = ({"role": "system", "content": "Be short."}, {"role": "user", "content": "Why?"})


def written(tmp_path, rollout, number=12, **options):
    SampleTable(**options).on_rollout_end(make_stage(tmp_path, number), Module(), *rollout, {})  # type: ignore[arg-type]
    name = f"rollout-{number:06d}"
    lines = (tmp_path / "samples" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines], (tmp_path / "text" / "samples" / f"{name}.md").read_text(encoding="utf-8").splitlines()


def test_file_and_table_hold_every_column(tmp_path):
    rollout = make_rollout(
        torch.tensor([[0.5, 7.0], [2.0, 1.0]]),
        torch.tensor([[True, False], [True, True]]),
        logps=torch.tensor([[[-1.0], [-2.0]], [[-3.0], [-4.0]]]),
        reference=torch.tensor([[[-2.5], [-2.0]], [[-3.0], [-4.0]]]),
        weights=torch.tensor([[1.25, 0.0], [3.0, 4.0]]),
        texts=[["ä|b\n<i>*c*", "d"], ["e", "f"]],
        prompts=["why", MESSAGES],
    )
    rows, table = written(tmp_path, rollout, prompts=1)
    assert rows[0] == {
        "id": 0,
        "prompt": "why",
        "responses": ["ä|b\n<i>*c*", "d"],
        "scores": [0.5, None],
        "valid": [True, False],
        "finished": [True, False],
        "weights": [1.25, 0.0],
        "kl": [1.5, 0.0],
    }
    assert rows[1]["prompt"] == list(MESSAGES)
    assert table == [
        "| prompt | response | scores | valid | finished | weights | kl |",
        "|---|---|---|---|---|---|---|",
        "| why | ä&#124;b<br>&lt;i&gt;&#42;c&#42; | 0.5 | yes | yes | 1.25 | 1.5 |",
        "|  | d | - | no | no | 0 | 0 |",
    ]


def test_messages_are_read_as_a_conversation(tmp_path):
    _, table = written(tmp_path, make_rollout(torch.zeros(1, 1), prompts=[MESSAGES], texts=[["So."]]))
    assert table[2].startswith("| system: Be short.<br>user: Why? | So. |")


def test_what_the_algorithm_does_not_have_is_no_column(tmp_path):
    rows, table = written(tmp_path, make_rollout(torch.zeros(1, 1)))
    assert rows[0].keys() == {"id", "prompt", "responses", "scores", "valid", "finished"}
    assert table[0] == "| prompt | response | scores | valid | finished |"


def test_other_ranks_write_beside_the_first(tmp_path):
    stage = make_stage(tmp_path)
    stage.global_rank, stage.is_global_zero = 2, False
    SampleTable().on_rollout_end(stage, Module(), *make_rollout(torch.zeros(1, 1)), {})  # type: ignore[arg-type]
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")] == ["samples/rollout-000012-rank-2.jsonl"]


def test_a_run_writes_every_so_many_rollouts_all_that_was_sampled(root, model):
    seen = []

    class Recorder(RolloutCallback):
        def on_rollout_end(self, trainer, module, rollouts, annotation, batch, diagnostics) -> None:
            seen.append((rollouts, annotation, batch))

    fit(root, model, [SampleTable(every_n_rollouts=2), Recorder()], max_epochs=3)
    files = sorted((root / "samples").iterdir())
    assert [file.name for file in files] == ["rollout-000000.jsonl", "rollout-000002.jsonl"]
    rows, (rollouts, annotation, batch) = [json.loads(line) for line in files[1].read_text().splitlines()], seen[2]
    assert [tuple(row["responses"]) for row in rows] == list(rollouts.texts)
    assert [row["id"] for row in rows] == batch.prompt_ids.tolist()
    assert torch.equal(torch.tensor([row["scores"] for row in rows]), annotation.scores)
    assert torch.equal(torch.tensor([row["weights"] for row in rows]), batch.weights)
    kl = (rollouts.sampling_logps - batch.reference_logps).sum(-1)
    torch.testing.assert_close(torch.tensor([row["kl"] for row in rows]), kl)
    assert kl.abs().max() > 0.1


def test_tensorboard_gets_text_and_histograms_instead_of_files(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    stage = make_stage(tmp_path, 3)
    stage.loggers = [logger := TensorBoardLogger(tmp_path, "", "")]
    SampleTable().on_rollout_end(stage, Module(), *make_rollout(torch.zeros(1, 1), texts=[["hello"]]), {})  # type: ignore[arg-type]
    log_histogram(stage, "weights/log10", torch.tensor([1.0, 2.0, torch.inf, torch.nan]), 3)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path)).Reload()
    text = events.Tensors("samples/text_summary")
    assert [event.step for event in text] == [3]
    assert b"| hello |" in text[0].tensor_proto.string_val[0]
    (histogram,) = events.Histograms("weights/log10")
    assert (histogram.step, histogram.histogram_value.num, histogram.histogram_value.max) == (3, 2.0, 2.0)
    assert not (tmp_path / "text").exists()
    assert not (tmp_path / "histograms").exists()


def test_it_counts_from_one():
    with pytest.raises(UserError, match="counts from 1"):
        SampleTable(every_n_rollouts=0)
