"""Help, version and a wrong command: at once, with nothing heavy."""

import re
import subprocess
import sys
import time

import pytest

from lit_align.cli import COMMANDS, HELP, TRAINER_COMMANDS, main
from tests.cli.shipped import ROOT

HEAVY = {"torch", "lightning", "transformers", "jsonargparse", "yaml", "numpy", "rich"}
PROGRAM = """
import sys
sys.argv = ["lit-align", *sys.argv[1:]]
try:
    from lit_align.cli import main
    main()
finally:
    print("LOADED", *sorted({name.split(".")[0] for name in sys.modules}))
"""


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 0, HELP),
        (["--help"], 0, HELP),
        (["--version"], 0, "lit-align "),
        (["fitt"], 2, "lit-align: There is no command 'fitt'. Did you mean 'fit'?\n"),
        (["quikstart", "--seed=1"], 2, "Did you mean 'quickstart'?"),
        (["--config=x.yaml", "fit"], 2, "The command comes first, then options, but '--config=x.yaml' came.\n"),
        (["zzz"], 2, "There is no command 'zzz'.\nCommands: fit, "),
    ],
)
def test_an_answer_that_needs_no_framework(arguments: list[str], code: int, said: str) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in (done.stderr if code else done.stdout)
    assert "Traceback" not in done.stderr
    loaded = set(done.stdout.rpartition("LOADED")[2].split())
    assert "lit_align" in loaded
    assert not loaded & HEAVY


def test_it_takes_less_than_three_tenths_of_a_second() -> None:
    def seconds() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", PROGRAM, "--help"], cwd=ROOT, capture_output=True, check=True)
        return time.perf_counter() - started

    assert min(seconds() for _ in range(5)) < 0.3  # the least of five: other programs have their turns


def test_the_list_of_commands_is_true(monkeypatch: pytest.MonkeyPatch) -> None:
    from lit_align.cli.trainer import AlignmentCLI

    assert set(AlignmentCLI.subcommands()) == set(TRAINER_COMMANDS)
    listed = [line.split()[0] for line in HELP.splitlines() if re.match("  (?!lit-align)[a-z]", line)]
    assert listed == list(COMMANDS)
    served = []
    monkeypatch.setattr("lit_align.cli.trainer.run_trainer", lambda arguments: served.append(arguments[0]))
    monkeypatch.setattr("lit_align.cli.check.check", lambda options: served.append("check"))
    monkeypatch.setattr("lit_align.cli.export.export", lambda options: served.append("export"))
    monkeypatch.setattr("lit_align.cli.agree.agree", lambda options: served.append("agree"))
    monkeypatch.setattr("lit_align.cli.judge.judge", lambda options: served.append("judge"))
    monkeypatch.setattr("lit_align.cli.mtbench.mtbench", lambda options: served.append("mtbench"))
    monkeypatch.setattr("lit_align.cli.plot.plot", lambda options: served.append("plot"))
    monkeypatch.setattr("lit_align.cli.completion.completion", lambda options: served.append("completion"))
    monkeypatch.setattr("lit_align.quickstart.run.quickstart", lambda options, run: served.append("quickstart"))
    for command in COMMANDS:
        main([command])
    assert served == list(COMMANDS)
