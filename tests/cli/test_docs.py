"""The messages in docs/cli.md are those that are printed."""

import re
import shlex
from pathlib import Path

import pytest

from lit_align.cli import COMMANDS, main
from tests.cli.shipped import CONFIGS, ROOT

PAGE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
SHOWN = [part for block in re.findall(r"```console\n(.*?)```", PAGE, re.S) for part in block.split("$ ")[1:]]


@pytest.mark.parametrize("shown", SHOWN, ids=[part.splitlines()[0][10:70] for part in SHOWN])
def test_a_message_is_shown_as_it_is_printed(shown: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (world / "configs").symlink_to(CONFIGS)
    for name, text in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.S):
        (world / name).write_text(f"# {name}\n{text}", encoding="utf-8")
    command, _, expected = shown.partition("\n")
    with pytest.raises(SystemExit) as exit_:
        main(shlex.split(command)[1:])
    assert exit_.value.code == 2
    printed = capsys.readouterr().err.replace(str(world), "FOLDER")
    printed = printed[printed.index("lit-align: ") :]
    assert printed.splitlines()[: len(expected.splitlines())] == expected.splitlines()
    assert len(printed.splitlines()) <= len(expected.splitlines()) + 1  # of the hub's loader, a line is left out


def test_every_command_is_there() -> None:
    assert len(SHOWN) >= 10
    assert all(f"`lit-align {command}" in PAGE for command in COMMANDS)
