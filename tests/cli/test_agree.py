"""``lit-align agree``: files and columns of every kind, an annotator to ask, two of them, and what is said about a mistake."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lit_align.cli import main
from lit_align.cli.labelled import LabelledFile
from lit_align.cli.labels import Labels
from lit_align.evaluation.agreement import AgreementReport
from tests.annotators.worlds import PAIRWISE, make_tokenizer, write_judge

ROWS: list[dict[str, Any]] = [
    {
        "prompt": "a",
        "answer_a": "aaaa",
        "answer_b": "b",
        "votes": [{"winner": "A"}, {"winner": "B"}, {"winner": "A"}],
        "ai": {"m.1/x": ["1", "1"]},
    },
    {"prompt": "a", "answer_a": "c", "answer_b": "cc", "votes": [{"winner": "tie"}], "ai": {"m.1/x": ["1", "2"]}},
    {"prompt": "b", "answer_a": "dd", "answer_b": "d", "votes": [{"winner": "b"}], "ai": {"m.1/x": ["1", "1"]}},
    {"prompt": "c", "answer_a": "e", "answer_b": "eee", "votes": [], "ai": {"m.1/x": ["2", "2"]}},
    {"prompt": "d", "answer_a": "ff", "answer_b": "gg", "votes": [{"winner": "B"}, {"winner": None}], "ai": {}},
]

BACKEND = '''
import torch
from lit_align.types import JudgeBackend

class Counts(JudgeBackend):
    """Likes an "a", knows nothing of prompts with a "j"; of two texts, it likes the second's place as well."""

    identity = "counts"

    def option_logps(self, prompts, options):
        rows = []
        for (message,) in prompts:
            prompt, *texts = message["content"].removesuffix("=").strip().split("|")
            counts = [0 if "j" in prompt else text.count("a") for text in texts if text.strip()]
            if len(options) == 2:
                z = 2.0 * (counts[0] - counts[1]) - 0.5
                rows.append([z, 0.0])
            else:
                rows.append([9.0 * (i == counts[0]) for i in range(len(options))])
        return torch.tensor(rows).log_softmax(-1)
'''
ANNOTATOR = """
data:
  init_args:
    annotator:
      class_path: lit_align.annotators.{kind}
      init_args:
        template: {template}
        backend:
          class_path: my_counts.Counts
"""


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path.name


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Labelled pairs, and judges, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    monkeypatch.delitem(__import__("sys").modules, "my_counts", raising=False)
    write_rows(tmp_path / "pairs.jsonl", ROWS)
    texts = {"my_counts.py": BACKEND, "pairwise_template.yaml": PAIRWISE}
    texts["scoring_template.yaml"] = "preamble: '{prompt}'\nsample: '|{response}|'\nending: '='\n"
    for name, kind in (("scoring", "ScoringJudge"), ("pairwise", "PairwiseJudge")):
        texts[f"{name}.yaml"] = ANNOTATOR.format(kind=kind, template=f"{name}_template.yaml")
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as exit_:
        main(["agree", *arguments])
    assert exit_.value.code == 2
    said = capsys.readouterr().err
    assert len(said.splitlines()) <= 6
    return said


def numbers(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def value(found: dict[str, Any], measure: str) -> tuple[float, int]:
    one = found["report"]["measures"][measure]
    return one["value"], one["n"]


# Columns


def test_votes_and_labels_in_both_orders_inside_of_objects(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["agree", "pairs.jsonl", "--human=votes.winner", "--ai=ai.m.1/x", "--json=out/found.json", "--plot=out/plot.png"])
    found = numbers(folder / "out/found.json")
    assert found["report"]["pairs"] == 3
    assert (found["report"]["unlabelled"], found["report"]["unjudged"]) == (1, 1)
    assert value(found, "agreement") == (pytest.approx(2 / 3), 3)  # of the second, both say tie: the judge by contradicting itself
    assert value(found, "agreement_without_ties") == (0.5, 2)
    assert value(found, "consistency") == (0.75, 4)
    assert value(found, "first_place") == (0.5 + 1 / 8, 4)
    assert value(found, "human_agreement") == (pytest.approx(1 / 3), 1)
    assert value(found, "ai_longer") == (1.0, 2)
    assert value(found, "human_longer") == (0.5, 2)
    assert "calibration_error" not in found["report"]["measures"]
    assert AgreementReport.from_json(found["report"]).pairs == 3
    with Image.open(folder / "out/plot.png") as image:
        assert image.format == "PNG"
    said = capsys.readouterr().out
    assert "ai.m.1/x: 3 pairs of 2 prompts." in said
    assert "Left out: 1 pairs without a human label, 1 others without a verdict of the judge." in said


def test_two_columns_probabilities_and_subsets(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": str(i), "kind": "xy"[i % 2], "who": who, "p": p, "q": q} for i, (who, p, q) in enumerate(
        [(1, 0.9, 0.7), (2, 0.4, 0.2), (1, 0.2, 0.4), (2, None, 0.1), (1, 1, 0)]
    )]  # fmt: skip
    write_rows(folder / "soft.jsonl", rows)
    main(["agree", "soft.jsonl", "--human=who", "--ai=p", "--ai_swapped=q", "--soft", "--subset=kind", "--json=found.json", "--plot=p.png"])
    found = numbers(folder / "found.json")
    assert value(found, "agreement") == (0.5, 4)
    assert value(found, "ai_ties") == (0.25, 4)  # 1 and 0
    assert value(found, "accuracy_given") == (0.75, 4)
    assert value(found, "accuracy_swapped") == (0.6, 5)
    assert {name: one["pairs"] for name, one in found["subsets"].items()} == {"x": 3, "y": 1}
    assert sum(one["pairs"] for one in found["report"]["reliability"]) == 4
    assert "\nkind" in capsys.readouterr().out


def test_parquet_is_read_like_json(folder: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    rows = [{"prompt": "a", "human": [1, 2, 2], "ai": 2.0}, {"prompt": "b", "human": [0, 0, 1], "ai": 1.0}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "pairs.parquet")
    main(["agree", "pairs.parquet", "--human=human", "--ai=ai", "--tie", "0", "--json=found.json"])
    assert value(numbers(folder / "found.json"), "agreement") == (0.5, 2)


def test_without_labels_the_chosen_is_peoples_choice(folder: Path) -> None:
    rows = [{"prompt": f"\n\nHuman: {i}\n\nAssistant:", "chosen": "aa" + "b" * (i % 3), "rejected": "a"} for i in range(12)]
    write_rows(folder / "chosen.jsonl", rows)
    main(["agree", "chosen.jsonl", "--config=scoring.yaml", "--json=found.json"])
    found = numbers(folder / "found.json")
    assert value(found, "agreement") == (1.0, 12)
    assert value(found, "kappa") == (1.0, 12)  # not undefined, as the better one is not always the first
    assert value(found, "human_longer") == (1.0, 12)


# Judges


def test_what_compares_is_asked_in_both_orders(folder: Path) -> None:
    main(["agree", "pairs.jsonl", "--human=votes.winner", "--config=pairwise.yaml", "--json=found.json"])
    found = numbers(folder / "found.json")
    assert found["ai"].startswith("PairwiseJudge(counts, pairwise_template.yaml:")
    assert found["report"]["pairs"] == 4
    assert value(found, "agreement") == (0.5, 4)  # right about the a's and the tie; of the others it knows nothing
    assert value(found, "first_place") == (1 / 8, 4)  # the four a's, once
    assert value(found, "calibration_error")[1] == 3


def test_scores_against_preferences_pair_by_pair(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both judges know the letters; the one that compares does not know prompts with a "j", of which there are 4 of 10."""
    rows = [
        {"prompt": "bj"[i % 10 < 4] + str(i), "response_1": ["aa", "b"][i % 2], "response_2": ["b", "aa"][i % 2], "label": 1 + i % 2}
        for i in range(20)
    ]  # fmt: skip
    write_rows(folder / "claim.jsonl", rows)
    blind = (folder / "my_counts.py").read_text(encoding="utf-8").replace('0 if "j" in prompt', '0 if "j" in prompt and len(options) == 2')
    (folder / "my_counts.py").write_text(blind, encoding="utf-8")
    main(["agree", "claim.jsonl", "--human=label", "--config=scoring.yaml", "--against=pairwise.yaml", "--json=found.json"])
    found = numbers(folder / "found.json")
    compared = found["comparison"]
    assert (compared["accuracy"]["value"], compared["against"]["value"]) == (1.0, pytest.approx(0.8))  # a tie is half right
    assert (compared["better"], compared["worse"]) == (8, 0)
    assert compared["p_value"] == pytest.approx(2 / 2**8)
    assert compared["difference"]["low"] > 0
    assert found["against"]["ai"].startswith("PairwiseJudge(counts")
    said = capsys.readouterr().out
    assert "The first was more right about 8 pairs, the second about 0; exact sign test: p = 0.0078" in said
    assert "go by the interval" not in said
    main(["agree", "claim.jsonl", "--human=label", "--config=pairwise.yaml", "--against=scoring.yaml", "--json=turned.json"])
    assert numbers(folder / "turned.json")["comparison"]["difference"]["value"] == pytest.approx(-0.2)


def test_a_column_against_another_and_against_an_annotator(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["agree", "pairs.jsonl", "--human=votes.winner", "--ai=ai.m.1/x", "--against=scoring.yaml", "--json=found.json"])
    found = numbers(folder / "found.json")
    assert (found["comparison"]["n"], found["comparison"]["difference"]["value"]) == (2, pytest.approx(-0.25))
    capsys.readouterr()
    main(["agree", "pairs.jsonl", "--human=votes.winner", "--ai=ai.m.1/x", "--against=ai.m.1/x.0"])
    assert "The first was more right about 0 pairs, the second about 0; exact sign test: p = 1" in capsys.readouterr().out


def test_a_language_model_is_asked_about_labelled_pairs_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_judge(folder / "my-judge", make_tokenizer())
    text = (folder / "pairwise.yaml").read_text(encoding="utf-8").replace(
        "class_path: my_counts.Counts", "class_path: lit_align.annotators.LocalLM\n          init_args: {path: my-judge}"
    )  # fmt: skip
    (folder / "pairwise.yaml").write_text(text + "        min_mass: 0\n", encoding="utf-8")
    main(["agree", "pairs.jsonl", "--human=votes.winner", "--config=pairwise.yaml", "--max_pairs=4"])
    assert "Left out: 1 pairs without a human label, 0 others" in capsys.readouterr().out


# Labels


def test_labels_are_compared_as_texts_without_case() -> None:
    labels = Labels(tie=("0", "Tie"), none=("garbage",))
    said = [labels.choice(label, "") for label in (1, "1", 1.0, "MODEL_A", " b ", "tie", 0, "Garbage", None, float("nan"))]
    assert said == [0, 0, 0, 0, 2, 1, 1, None, None, None]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--human=vote.winner", "--ai=ai.m.1/x"],
            "no row has the column 'vote.winner' of --human. There are: answer_a, answer_b, votes, ai.",
        ),
        (["--human=votes.winer", "--ai=ai.m.1/x"], "of --human. There are: votes.winner. Did you mean 'votes.winner'?"),
        (["--human=votes.winner", "--ai=ai.m.1/y"], "of --ai. There are: ai.m.1/x. Did you mean 'ai.m.1/x'?"),
        (["--human=votes.winner", "--ai=ai.m.1/x", "--second", "2"], "nobody said what the label 'B' (str) means. Known are first: 1, a"),
        (["--human=votes.winner", "--ai=ai.m.1/x", "--tie", "1"], "The label '1' would mean both first and tie."),
        (["--human=votes.winner", "--ai=answer_a", "--soft"], "row 0 (counted from 0), 'answer_a': expected the probability"),
        (["--human=votes.winner"], "Expected one judge: --ai COLUMN for verdicts that the file has, or --config FILE"),
        (["--human=votes.winner", "--ai=ai.m.1/x", "--config=scoring.yaml"], "Expected one judge"),
        (["--human=votes.winner", "--config=scoring.yaml", "--ai_swapped=ai"], "--ai_swapped is the second column of a judge in --ai"),
        (["--ai=ai.m.1/x"], "name the column of those with --human"),
        (["--config=scoring.yaml"], "row 0 (counted from 0): without --human, expected a better and a worse answer"),
        (
            ["--human=votes.winner", "--config=scoring.yaml", "--responses", "answer_a", "answer_c"],
            "'answer_c' of --responses. There are: answer_a",
        ),
        (
            ["--human=votes.winner", "--config=scoring.yaml", "--responses", "answer_a", "ai"],
            "expected the text of a response, got {'m.1/x'",
        ),
        (["--human=votes.winner", "--ai=ai.m.1/x", "--ai_swapped=ai.m.1/x.0"], "or two, one for each order, but found"),
        (["--human=votes.winner", "--config=scorin.yaml"], "There is no config file scorin.yaml"),
        (["--human=votes.winner", "--config={data: {init_args: {anotator: x}}}"], "Did you mean 'annotator'?"),
        (["--human=votes.winner", "--config={}"], "Expected a judge, data.init_args.annotator, in a config file"),
        (["--human=votes.winner", "--ai=ai.m.1/x", "--prompt_field=question"], "expected a text in 'question'"),
    ],
)
def test_a_mistake_is_said_in_a_few_lines(arguments: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said in refused(capsys, "pairs.jsonl", *arguments)


def test_without_any_pair_that_both_labelled_nothing_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(folder / "none.jsonl", [{"prompt": "a", "human": None, "ai": 1}, {"prompt": "a", "human": 1, "ai": None}])
    assert "of 2 pairs, none has both a label of people and a verdict of ai" in refused(capsys, "none.jsonl", "--human=human", "--ai=ai")


def test_responses_without_usual_names_have_to_be_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(folder / "odd.jsonl", [{"prompt": "a", "human": 1, "left": "x", "right": "y"}])
    arguments = ["odd.jsonl", "--human=human", "--config=scoring.yaml"]
    assert "Name them with --responses. There are: 'human', 'left', 'right'." in refused(capsys, *arguments)
    main(["agree", *arguments, "--responses", "left", "right"])
    assert ": 1 pairs of 1 prompts." in capsys.readouterr().out


def test_equal_prompts_are_one(folder: Path) -> None:
    assert LabelledFile("pairs.jsonl", None, None, None).prompt_numbers.tolist() == [0, 0, 1, 2, 3]
