"""What docs/prompts.md says of columns, sources and commands is so."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_align.cli.trainer import run_trainer
from lit_align.data import JsonlPrompts, MixedPrompts, sources
from lit_align.data.columns import LAYOUTS
from lit_align.types import Prompt
from tests.tiny import PROMPTS, write_prompts, write_tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8")
FILES = [str(ROOT / "configs" / name) for name in ("algorithm/dar_anchored.yaml", "experiment/local.yaml", "annotator/function.yaml")]
SMALL = [
    "--trainer.accelerator=cpu",
    "--trainer.devices=1",
    "--trainer.max_epochs=2",
    "--trainer.enable_model_summary=false",
    "--trainer.accumulate_grad_batches=1",
    "--data.init_args.prompts_per_rollout=8",
    "--data.init_args.sampler.init_args.max_new_tokens=4",
]
ANNOTATOR = "def score(prompt, responses):\n    return [float(r.count('a')) for r in responses]\n"


def section(heading: str) -> str:
    """What stands under a heading."""
    return PAGE.split(f"\n## {heading}\n")[1].split("\n## ")[0]


def blocks(heading: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, as a reader has it."""
    write_tiny(tmp_path / "my-model")
    for name in ("prompts.jsonl", "more_prompts.jsonl", "eval_prompts.jsonl", "prompts/train.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_prompts(tmp_path / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "my_annotator.py").write_text(ANNOTATOR, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_annotator", raising=False)
    return tmp_path


def built(text: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The data module of a run with this YAML."""
    Path("mine.yaml").write_text(text, encoding="utf-8")
    with monkeypatch.context() as patch:
        patch.setattr("lightning.pytorch.cli.LightningCLI._run_subcommand", lambda *_: None)
        return run_trainer(["fit", *(f"--config={file}" for file in FILES), "--config=mine.yaml", *SMALL]).datamodule


def test_every_source_is_in_the_table() -> None:
    table = set(
        re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in PAGE.split("\n## ")[0].splitlines() if line.startswith("| `")))
    )
    assert table == set(sources.__all__) - {"RowPrompts", "prompt_id"}


def test_the_lines_are_read_by_the_lines_of_the_table(tmp_path: Path) -> None:
    (lines,) = blocks("The columns that are understood", "json")
    (tmp_path / "rows.jsonl").write_text(lines, encoding="utf-8")
    prompts = list(JsonlPrompts(str(tmp_path / "rows.jsonl")))
    said = [p.content if isinstance(p.content, str) else p.content[-1]["content"] for p in prompts]
    tea = "Which tea?"
    assert said == ["Which tea for a rainy day?", tea, tea, tea, f"\n\nHuman: {tea}\n\nAssistant:", "Translate into English.\n\nle thé"]
    rows = [json.loads(line) for line in lines.splitlines()]
    numbers = [next(i for i, layout in enumerate(LAYOUTS, start=1) if layout(row, "")) for row in rows]
    assert numbers == [4, 4, 1, 2, 5, 6]
    table = [line.split("|")[2] for line in section("The columns that are understood").splitlines() if re.match(r"\| \d", line)]
    assert len(table) == len(LAYOUTS)
    for number, row in zip(numbers, rows, strict=True):
        assert re.findall(r"`(\w+)`", table[number - 1])[0] in row


def test_named_columns(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "questions.jsonl").write_text('{"question": "a", "prompt": "b"}\n', encoding="utf-8")
    (text,) = blocks("The columns that are understood", "yaml")
    assert [p.content for p in built(text, monkeypatch).prompts] == ["a"]


def test_the_reference_of_a_conversation(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "level": 1}
    (folder / "chats.jsonl").write_text(json.dumps(row), encoding="utf-8")
    (text,) = blocks("Reference answers and other columns, for annotators", "yaml")
    (prompt,) = built(text, monkeypatch).prompts
    assert (prompt.content, prompt.reference, prompt.meta) == ((row["messages"][0],), "b", {"level": 1})


def test_the_annotator_reads_a_column() -> None:
    (code,) = blocks("Reference answers and other columns, for annotators", "python")
    names: dict[str, Any] = {}
    exec(compile(code, "my_annotator.py", "exec"), names)
    assert names["score"](Prompt(0, "a", meta={"wanted": "tea"}), ["green tea", "no"]) == pytest.approx([0.98, -0.01])


def test_several_datasets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("Several datasets", "yaml")
    mixed = built(text, monkeypatch).prompts
    assert isinstance(mixed, MixedPrompts)
    assert mixed.shares == {"prompts": 0.75, "riddles": 0.25}
    shipped = yaml.safe_load((ROOT / "configs" / "data" / "mixed.yaml").read_text(encoding="utf-8"))
    shipped["data"]["init_args"]["prompts"]["init_args"]["sources"][1]["init_args"]["name"] = "riddles"
    assert yaml.safe_load(text) == shipped


def test_an_evaluation_set_of_its_own(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (text,) = blocks("A separate evaluation set", "yaml")
    data = built(text, monkeypatch)
    assert [p.content for p in data.eval_prompts] == PROMPTS[:2]
    assert len(list(data.prompts)) == len(PROMPTS)


@pytest.mark.parametrize("heading", ["Several datasets", "Streaming"])
def test_the_commands_run_and_log_what_is_said(heading: str, folder: Path) -> None:
    (command,) = blocks(heading, "sh")
    trainer = run_trainer([*command.replace("\\\n", " ").split()[1:], *SMALL]).trainer
    assert trainer.current_epoch == 2
    names = {name for name in trainer.callback_metrics if name.startswith(("reward/", "prompts/"))} - {"reward/mean", "reward/std"}
    assert names == (
        {"reward/prompts", "reward/more_prompts"} if heading == "Several datasets" else {"prompts/dropped", "prompts/readings"}
    )
