"""Rules that decide without a model, and the annotator that asks them."""

import json
import threading
import time
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import pytest
import torch

from lit_align.annotators import Contained, Exact, Mathematical, Numeric, Regex, Verifier
from lit_align.annotators.deciding import name_of
from lit_align.annotators.mathematical import _Library
from lit_align.types import Prompt, UserError
from tests.annotators.worlds import rollouts


def question(reference=None, **meta):
    return Prompt(0, "?", reference=reference, meta=meta)


@pytest.mark.parametrize(
    ("rule", "reference", "right", "wrong"),
    [
        (Exact(), "Paris", ["Paris", " Paris\n"], ["paris", "Paris.", "It is Paris", ""]),
        (Exact(ignore_case=True), "Paris", ["PARIS"], ["Pari"]),
        (Contained(), "art", ["Modern ART!", "art", "(art)"], ["party", "art_", ""]),
        (Contained(ignore_case=False), "1.5", ["x=1.5, so"], ["1x5", "11.5", "1.55"]),
        (
            Numeric(),
            "42",
            ["42", "It is 42.", "7 * 6 = 42", "$42.00", "+42", "4.2e1", "84/2", "42%"],
            ["43", "42 or 43", "-42", "none", "4 2"],
        ),
        (Numeric(), "#### 1,234", ["1234", "1,234", "so 1,234.0", "1234 "], ["1,23", "234", "12,34", "1.234"]),
        (Numeric(), "3/4", ["0.75", "75/100", "3 / 4"], ["3", "4", "0.75001", "3/0"]),
        (Numeric(), "-0.5", ["x = -1/2", "−.5", "(-0.5)"], ["1-0.5", "0.5"]),
        (Numeric(0.01), "1000", ["1010", "990"], ["1011", "989"]),
        (Numeric(0.01), "0", ["0.01"], ["0.02"]),
        (Regex(r"^Answer: \d{2}$"), None, ["Well.\nAnswer: 42\nBye."], ["Answer: 4", "My Answer: 42"]),
        (Regex(r"= {reference}$"), "a.b", ["x = a.b"], ["x = aXb"]),
    ],
)
def test_right_and_wrong(rule, reference, right, wrong):
    assert [text for text in right if rule(question(reference), text) is not True] == []
    assert [text for text in wrong if rule(question(reference), text) is not False] == []


def test_any_of_several_references_will_do():
    both = question("Paris", references=["Lutetia", 3])
    assert [Exact()(both, text) for text in ("Paris", "Lutetia", "3", "Rome")] == [True, True, True, False]
    assert Exact()(question(references=["a"]), "a") is True
    assert Exact()(question(references=None), "a") is None
    assert Regex("{reference}")(question(), "a") is None


def test_no_number_takes_long_or_breaks():
    started = time.perf_counter()
    for text in ("1e999999999", "9" * 10_000, "1/" + "9" * 10_000, "1," * 5_000, "1e-99999999", "-" * 10_000):
        assert Numeric()(question("5"), text) is False
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regex("(a"), "regular expression, got '\\(a'"),
        (lambda: Numeric(-1.0), r"at least 0, got -1\.0"),
        (lambda: Numeric(float("nan")), "nan"),
    ],
)
def test_a_rule_that_makes_no_sense(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_a_verifier_scores_what_its_rule_says():
    asked = rollouts([["a", "b"], ["c", "d"]])
    asked = replace(asked, prompts=(question("b"), question("c")))
    annotation = Verifier(Exact()).annotate(asked)
    assert annotation.scores.tolist() == [[0.0, 1.0], [1.0, 0.0]]
    assert annotation.valid.all()
    assert annotation.scores.dtype == torch.float32
    graded = Verifier(lambda prompt, response: 0.5 * ord(response)).annotate(asked)
    assert graded.scores.tolist() == [[48.5, 49.0], [49.5, 50.0]]


def broken(prompt, response):
    return {"a": lambda: 1 / 0, "b": lambda: float("inf"), "c": lambda: None, "d": lambda: True}[response]()


def test_what_cannot_be_decided_is_invalid_and_said_once():
    verifier = Verifier(broken)
    with pytest.warns(UserWarning, match=r"test_rules\.broken, but it raised ZeroDivisionError.*'a' to prompt 0") as warned:
        annotation = verifier.annotate(rollouts([["a", "b"], ["c", "d"]]))
    assert annotation.valid.tolist() == [[False, False], [False, True]]
    assert annotation.scores.tolist() == [[0.0, 0.0], [0.0, 1.0]]
    assert verifier.decider.undecided == 3
    assert len(warned) == 1
    with pytest.warns(UserWarning, match="no number in the reference 'x'"):
        assert not Verifier(Numeric()).annotate(replace(rollouts([["5"]]), prompts=(question("x"),))).valid.any()
    with pytest.warns(UserWarning, match="Exact.* does the prompt have the reference answer"):
        assert not Verifier(Exact()).annotate(rollouts([["5"]])).valid.any()


def test_a_rule_is_named_the_same_in_every_process():
    assert name_of(Numeric(0.5)) == "Numeric(tolerance=0.5)"
    assert name_of(broken) == f"{__name__}.broken"
    assert name_of(partial(broken)) == "functools.partial"
    assert Verifier(Exact()).identity == "Verifier(Exact(ignore_case=False))"


missing = pytest.mark.skipif(find_spec("math_verify") is None, reason="math-verify is not installed")


@missing
@pytest.mark.parametrize(
    ("reference", "right", "wrong"),
    [
        (r"\frac{1}{2}", ["so it is $0.5$", r"\boxed{\frac12}", "1/2"], ["2", r"$\frac{1}{3}$", ""]),
        ("x^2-1", ["$(x-1)(x+1)$"], ["$(x-1)^2$"]),
        (r"The answer is $\{1, 2\}$.", [r"$\{2, 1\}$"], [r"$\{1\}$"]),
    ],
)
def test_mathematics(reference, right, wrong):
    assert [text for text in right if not Mathematical()(question(reference), text)] == []
    assert [text for text in wrong if Mathematical()(question(reference), text)] == []


@missing
def test_mathematics_beside_no_expression_is_undecided():
    with pytest.warns(UserWarning, match=r"Mathematical\(seconds=5\), but it raised ValueError\(\"no expression in the reference"):
        assert not Verifier(Mathematical()).annotate(replace(rollouts([["5"]]), prompts=(question("no $ at all"),))).valid.any()


@missing
def test_mathematics_that_takes_for_ever_is_wrong_in_any_thread():
    """Four threads at once; each answer is to its own question, the next one after a long one included."""
    rule, found = Mathematical(seconds=0.5), {}
    slow, texts = "$7^{7^{9}}$", ["$3$", "$7^{7^{9}}$", "$3.0$", "$4$"]

    def ask(text):
        found[text] = rule(question("3"), text)

    started = time.perf_counter()
    ask("$9/3$")  # the library is imported
    asked = time.perf_counter()
    threads = [threading.Thread(target=ask, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {"$9/3$": True, "$3$": True, slow: False, "$3.0$": True, "$4$": False}
    assert time.perf_counter() - asked < 20 + 2 * (asked - started)


@missing
def test_an_answer_that_nobody_waited_for_is_nobody_elses(monkeypatch):
    library = _Library()
    assert library.ask(json.dumps(["$1$", "$1$", 5])) == "true"
    before = library._process

    def interrupted(said):
        print(said, file=before.stdin, flush=True)
        raise KeyboardInterrupt

    monkeypatch.setattr(library, "_exchange", interrupted)
    with pytest.raises(KeyboardInterrupt):
        library.ask(json.dumps(["$1$", "$1$", 5]))
    monkeypatch.undo()
    assert library.ask(json.dumps(["$1$", "$2$", 5])) == "false"
    assert library._process is not before
    library._process.kill()
    library._process.wait()
    assert library.ask(json.dumps(["$1$", "$1$", 5])) == "true", "another one is started"
    library.stop()


@pytest.mark.parametrize("seconds", [0, -1.0, float("nan")])
def test_mathematics_needs_time(seconds):
    with pytest.raises(UserError, match="seconds should be positive"):
        Mathematical(seconds)


def test_without_its_package_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr("lit_align.annotators.mathematical.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "lit-align\[math\]"'):
        Mathematical()
