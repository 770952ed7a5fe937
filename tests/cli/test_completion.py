"""The script by which bash completes a command."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from lit_align.cli import COMMANDS, main
from tests.cli.shipped import CONFIGS

Complete = Callable[..., list[str]]


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> Complete:
    """What the tab key offers after these words, in the folder of the project."""
    pytest.importorskip("shtab", reason="shtab, which writes the script, is not installed")
    script = tmp_path_factory.mktemp("completion") / "script"
    with script.open("w", encoding="utf-8") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        main(["completion", "bash"])
    assert script.stat().st_size < 2_000_000  # a shell reads it when it starts, a tenth of a second; classes of tests are in it too
    subprocess.run(["bash", "-n", script], check=True)

    def offered(*words: str) -> list[str]:
        program = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_lit_align; printf "%s\\n" "${COMPREPLY[@]}"'
        done = subprocess.run(
            ["bash", "-c", program, script, "lit-align", *words], capture_output=True, text=True, check=True, cwd=CONFIGS.parent
        )
        return done.stdout.split()

    return offered


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], ["fit"]),
        (["fit", "--trainer.max_ep"], ["--trainer.max_epochs"]),
        (["check", "--model.init_args.alp"], ["--model.init_args.alpha"]),
        (["fit", "--model.init_args.policy.init_args.lora.r"], ["--model.init_args.policy.init_args.lora.rank"]),
        (["fit", "--data.init_args.prompts_p"], ["--data.init_args.prompts_per_rollout"]),
        (["fit", "--data.init_args.long_prompts", "d"], ["drop"]),
        (["fit", "--trainer.precision", "bf16-m"], ["bf16-mixed"]),
        (["fit", "--model", "lit_align.algorithms.SF"], ["lit_align.algorithms.SFT"]),
        (["fit", "--config", "config"], ["configs"]),
        (["agree", "pairs.jsonl", "--hum"], ["--human"]),
        (["export", "--o"], ["--output"]),
        (["judge", "--max"], ["--max_new_tokens"]),
        (["mtbench", "--q"], ["--questions"]),
        (["plot", "--sc"], ["--score"]),
        (["quickstart", "--see"], ["--seed"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_what_the_tab_key_offers(words: list[str], expected: list[str], complete: Complete) -> None:
    assert complete(*words) == expected


def test_every_command_is_offered(complete: Complete) -> None:
    assert complete("") == list(COMMANDS)


def test_without_the_library_the_message_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(SystemExit) as exit_:
        main(["completion", "bash"])
    assert exit_.value.code == 2
    assert "which is not installed here. Install it: pip install shtab\n" in capsys.readouterr().err
