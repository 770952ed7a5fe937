"""The mistakes that ``make mutate`` makes still fit the sources, and what makes them works."""

import ast
from pathlib import Path

import pytest

from scripts import mutate

PACKAGE = Path(__file__).parents[1] / "lit_align"
MUTATIONS = mutate.read()


def test_there_are_enough_of_them_and_none_is_there_twice() -> None:
    assert len({(m.file, m.original, m.replacement) for m in MUTATIONS}) == len(MUTATIONS) >= 40
    assert {m.file.split("/")[0] for m in MUTATIONS} == {"functional", "algorithms", "models", "generation", "data"}


@pytest.mark.parametrize("mutation", MUTATIONS, ids=str)
def test_a_mutation_fits_its_file(mutation: mutate.Mutation) -> None:
    """It is found once, leaves Python behind, changes more than a comment, and begins with a test that exists."""
    source = (PACKAGE / mutation.file).read_text(encoding="utf-8")
    assert ast.dump(ast.parse(mutation.applied(source))) != ast.dump(ast.parse(source))
    file, _, name = (mutation.first or "").partition("::")
    if file:
        assert f"def {name}(" in (PACKAGE.parent / file).read_text(encoding="utf-8") or not name


def test_what_is_likely_to_notice_comes_first_and_doctests_last() -> None:
    """A file whose doctests come first is there twice, and is told from itself by tests that compare classes."""
    for mutation in MUTATIONS:
        assert mutation.tests[0] == (mutation.first or mutation.tests[0])
        assert mutation.tests[0].startswith("tests/")
        assert mutation.tests[-1] == f"lit_align/{mutation.file}"


@pytest.mark.parametrize(("source", "replacement"), [("x = 1", "3"), ("x = 2 + 2", "3"), ("x = 2", "2")])
def test_a_mutation_that_does_not_fit_is_an_error(source: str, replacement: str) -> None:
    with pytest.raises(ValueError, match="some file: some mistake: the original"):
        mutate.Mutation("some file", "some mistake", "2", replacement).applied(source)


def test_survivors_fail(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = {None: (True, ""), "sign in k3": (False, "FAILED tests/here.py"), "mean for sum": (True, "")}
    monkeypatch.setattr(mutate, "survives", lambda m: said[m and m.name])
    assert mutate.main(["sign in k3"]) == 0
    assert mutate.main(["sign in k3", "mean for sum"]) == 1
    assert "SURVIVES  functional/logprobs.py: mean for sum\n" in capsys.readouterr().out
