"""The spine stays short enough to be read in one go, and its counter counts what it says."""

from pathlib import Path

import pytest

from scripts import spine

SOURCE = '''
"""Not counted: the file's docstring."""

def elsewhere():
    return 0

class Wheel:
    """Not counted."""

    @property  # counted: a decorator
    def turn(self):
        """Not counted,

        over three lines."""
        # not counted

        text = """a string
        # that is code, over two lines"""

        def inner():
            "Not counted."
            return text  # counted once
        return (
            inner()
        )

    def other(self):
        return 1
'''


def test_the_spine_holds() -> None:
    lines, holds = spine.report()
    assert holds, "\n".join(lines)


@pytest.mark.parametrize(("name", "count"), [("Wheel.turn", 9), ("elsewhere", 2), ("Wheel", 12), ("Wheel.gone", None), ("turn", None)])
def test_only_code_is_counted(name: str, count: int | None) -> None:
    assert spine.lines_of_code(SOURCE, name) == count


def test_the_limit_is_the_last_number_that_holds(tmp_path: Path) -> None:
    (tmp_path / "wheel.py").write_text(SOURCE, encoding="utf-8")
    names = [("wheel.py", "Wheel.turn"), ("wheel.py", "elsewhere")]
    assert spine.report(tmp_path, names, limit=11)[1]
    lines, holds = spine.report(tmp_path, names, limit=10)
    assert not holds
    assert "11 lines of code, at most 10" in lines[-1]


@pytest.mark.parametrize(("file", "name"), [("wheel.py", "Wheel.gone"), ("gone.py", "Wheel.turn")])
def test_a_missing_name_fails(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / "wheel.py").write_text(SOURCE, encoding="utf-8")
    lines, holds = spine.report(tmp_path, [(file, name)])
    assert not holds
    assert f"{file} has no {name}" in lines[-1]
