"""Someone's first run: their model, a file of chats, an opinion in three lines, and two edits of a shipped YAML."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from lit_align.cli import main
from lit_align.models import CausalPolicy
from lit_align.types import Prompt
from tests.cli.shipped import CONFIGS, PARTS
from tests.tiny import write_tiny

CHATS = [
    [{"role": "user", "content": "a bad cab"}],
    [{"role": "system", "content": "be brief"}, {"role": "user", "content": "a deaf chief"}],
    [{"role": "user", "content": "dig"}, {"role": "assistant", "content": "I did."}, {"role": "user", "content": "dig a big ditch"}],
]
OPINION = 'def score(prompt, responses):\n    """Many times a."""\n    return [text.count("a") for text in responses]\n'
LOCAL = Path("configs/experiment/local.yaml")


def settle(folder: Path, model: str, patch: pytest.MonkeyPatch) -> None:
    """A copy of the configs, a chat file and an annotator in the current folder; ``model`` is somewhere else."""
    shutil.copytree(CONFIGS, folder / "configs")
    (folder / "prompts.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in CHATS), encoding="utf-8")
    (folder / "my_annotator.py").write_text(OPINION, encoding="utf-8")
    patch.chdir(folder)
    patch.setattr("sys.path", [*sys.path])
    patch.delitem(sys.modules, "my_annotator", raising=False)
    edit("path: my-model", f"path: {model}")


def edit(old: str, new: str) -> None:
    """One edit of the shipped file."""
    text = LOCAL.read_text(encoding="utf-8")
    assert text.count(old) == 1
    LOCAL.write_text(text.replace(old, new), encoding="utf-8")


def give_template() -> None:
    """The other edit: the line is there, as a comment."""
    edit("# chat_template: ", "chat_template: ")


def lit_align(command: str, *more: str) -> None:
    files = (f"--config=configs/{part}" for part in PARTS)
    main([command, *files, "--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--run=runs/first", *more])


def check_run(model: str) -> None:
    """Two rollouts of chats, labelled by the opinion, of the shipped file with two lines changed."""
    shipped, edited = (path.read_text(encoding="utf-8").splitlines() for path in (CONFIGS.parent / LOCAL, LOCAL))
    assert sum(one != other for one, other in zip(shipped, edited, strict=True)) == 2
    rows = [json.loads(line) for line in Path("runs/first/journal/labels-0.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["rollout"] for row in rows] == [0] * 32 + [1] * 32
    assert len({row["prompt"] for row in rows}) == len(CHATS)
    policy = yaml.safe_load(Path("runs/first/config.yaml").read_text(encoding="utf-8"))["model"]["init_args"]["policy"]["init_args"]
    assert policy["path"] == model
    assert Path("runs/first/checkpoints/last.ckpt").is_file()


def test_two_edits_start_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_tiny(tmp_path / "elsewhere", context=256)
    (tmp_path / "work").mkdir()
    settle(tmp_path / "work", model, monkeypatch)
    with pytest.raises(SystemExit):
        lit_align("check")
    said = capsys.readouterr().err
    assert "has no chat template. Set `chat_template: FILE.jinja` of policy (configs/chat_template/plain.jinja is one)" in said
    give_template()
    lit_align("check")
    assert "Config, files and model are fine." in capsys.readouterr().out
    lit_align("fit", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false")
    check_run(model)


def test_the_shipped_template_writes_a_chat_out(tmp_path: Path) -> None:
    policy = CausalPolicy(write_tiny(tmp_path), chat_template=str(CONFIGS / "chat_template" / "plain.jinja"))
    chat = [CHATS[1][0], *CHATS[2]]
    expected = "<bos>be brief\n\nUser: dig\nAssistant: I did.\nUser: dig a big ditch\nAssistant:"
    assert policy.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == expected
    assert policy.encode(Prompt(0, tuple(chat))).count(2) == 1  # BOS
