"""No two algorithms share a run of code: what they have in common has a name and a place."""

import tokenize
from io import StringIO
from itertools import combinations
from pathlib import Path

import pytest

ALGORITHMS = Path(__file__).parents[1] / "lit_align" / "algorithms"
RUN = 5
LAYOUT = {tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def logical_lines(source: str) -> list[str]:
    """Every statement as one line however it is wrapped, a signature too; without comments, imports and docstrings."""
    lines, words = [], list[str]()
    for token in tokenize.generate_tokens(StringIO(source).readline):
        if token.type == tokenize.NEWLINE:
            docstring = len(words) == 1 and words[0].endswith(('"', "'"))
            if words[0] not in ("import", "from") and not docstring:
                lines.append(" ".join(words).replace(" , )", " )"))  # of a wrapped call
            words = []
        elif token.type not in LAYOUT:
            words.append(token.string)
    return lines


def shared(one: str, other: str) -> list[str]:
    """The first run of ``RUN`` lines that both have, empty if there is none."""
    first, second = logical_lines(one), logical_lines(other)
    runs = {tuple(second[i : i + RUN]) for i in range(len(second) - RUN + 1)}
    return next((first[i : i + RUN] for i in range(len(first) - RUN + 1) if tuple(first[i : i + RUN]) in runs), [])


FILES = sorted(ALGORITHMS.glob("*.py"))


def test_no_two_files_share_a_run_of_code() -> None:
    sources = {path.name: path.read_text(encoding="utf-8") for path in FILES}
    found = {(one, other): run for one, other in combinations(sources, 2) if (run := shared(sources[one], sources[other]))}
    assert not found, "\n\n".join(f"{one} and {other} share\n    " + "\n    ".join(run) for (one, other), run in found.items())
    assert len(sources) > 20


SOURCE = '''
"""About."""
from torch import Tensor

class One:
    """Not counted."""

    def both(self, a, b,  # wrapped
             c):
        """Not

        counted."""
        a = b
        return call(
            a,
            b,
        )

    def mine(self):
        return 1
'''
LINES = ["class One :", "def both ( self , a , b , c ) :", "a = b", "return call ( a , b )", "def mine ( self ) :", "return 1"]


def test_a_statement_is_one_line_however_it_is_wrapped() -> None:
    assert logical_lines(SOURCE) == LINES


@pytest.mark.parametrize(
    ("other", "expected"), [(SOURCE, LINES[:5]), (SOURCE.replace("One", "Two"), LINES[1:6]), (SOURCE.replace("a = b", "a = c"), [])]
)
def test_five_lines_in_a_row_are_found(other: str, expected: list[str]) -> None:
    assert shared(SOURCE, other) == expected
