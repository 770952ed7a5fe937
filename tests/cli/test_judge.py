"""``lit-align judge`` on files, models and runs: who wins, from what, and what is sampled anew."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lit_align.cli import main
from lit_align.cli.trainer import run_trainer
from lit_align.generation import CacheSampler
from tests.cli.shipped import CONFIGS, OWN
from tests.tiny import PROMPTS, write_tiny

Judge = Callable[..., dict]
JUDGE = """
data:
  init_args:
    annotator:
      class_path: lit_align.annotators.FunctionAnnotator
      init_args:
        function: my_judge.{}
"""
JUDGES = """
def longer(prompt, responses):
    return [len(text) for text in responses]

def shorter(prompt, responses):
    return [-len(text) for text in responses]

def like_the_reference(prompt, responses):
    return [float(text == prompt.reference) for text in responses]
"""


@pytest.fixture
def judge(world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Judge:
    """Runs the command, says the numbers with what was printed."""
    monkeypatch.delitem(__import__("sys").modules, "my_judge", raising=False)
    Path("my_judge.py").write_text(JUDGES, encoding="utf-8")
    for name in ("longer", "shorter", "like_the_reference"):
        Path(f"{name}.yaml").write_text(JUDGE.format(name), encoding="utf-8")

    def run(*arguments: str, output: str = "judged") -> dict:
        capsys.readouterr()
        main(["judge", *arguments, f"--output={output}"])
        return json.loads(Path(output, "report.json").read_text(encoding="utf-8")) | {"printed": capsys.readouterr().out}

    return run


def write_samples(name: str, answers: list[list[str]], **more: str) -> str:
    rows = [{"prompt": prompt, "responses": texts} | more for prompt, texts in zip(PROMPTS, answers, strict=False)]
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return name


@pytest.fixture
def silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody may sample."""

    def sample(*_: object) -> None:
        raise AssertionError("sampled")

    monkeypatch.setattr(CacheSampler, "sample", sample)


def test_stored_samples_are_judged_and_judged_again_without_sampling(judge: Judge, silent: None) -> None:
    left, right = (
        write_samples("a.jsonl", [["aaa", "a"], ["bb", "b"]]),
        write_samples("b.jsonl", [["cc", "cc"], ["c", "cc"], ["unmatched", "x"]]),
    )
    found = judge(left, right, "--config=longer.yaml")
    assert found["comparisons"][0]["win_rate"]["value"] == 0.5
    assert found["comparisons"][0]["win_rate"]["n"] == 4
    assert (found["judge"], found["prompts"]) == ("my_judge.longer", 2)
    assert "1 of 3 prompts of b.jsonl are not answered by all others, and left out." in found["printed"]
    assert Path("judged/report.md").read_text(encoding="utf-8") in found["printed"]
    rows = [json.loads(line) for line in Path("judged/verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["wins"][0][1] for row in rows] == [1.0, 0.0, 1.0, 0.0]
    assert rows[0] == {"prompt": "a", "answers": {"a.jsonl": "aaa", "b.jsonl": "cc"}, "wins": [[None, 1.0], [0.0, None]]}
    again = judge(left, right, "--config=shorter.yaml", output="again")
    assert again["judge"] == "my_judge.shorter"
    rows = [json.loads(line) for line in Path("again/verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["wins"][0][1] for row in rows] == [0.0, 1.0, 0.0, 1.0]


def test_against_the_answers_of_a_dataset_which_are_references_too(judge: Judge, silent: None) -> None:
    rows = [{"prompt": prompt, "answer": prompt * 2} for prompt in PROMPTS]
    Path("gold.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    samples = write_samples("a.jsonl", [[prompt * (1 + i % 2)] for i, prompt in enumerate(PROMPTS)])
    found = judge(samples, "gold.jsonl:answer", "--config=like_the_reference.yaml")["comparisons"][0]
    assert found["win_rate"]["value"] == 0.25  # half of them lose, half tie
    assert found["win_rate"]["ties"] == 0.5
    assert (found["first"], found["second"]) == ("a.jsonl", "gold.jsonl:answer")


def test_models_answer_with_one_sampler_and_the_same_noise(judge: Judge) -> None:
    write_tiny(Path("other-model"), seed=1)
    write_tiny(Path("twin"))
    found = judge(
        "my-model", "other-model", "twin", "--config=longer.yaml", "--prompts=prompts.jsonl", "--max_new_tokens=5", "--responses=2"
    )
    samples = {p.stem: [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()] for p in Path("judged/samples").iterdir()}
    assert {*samples} == {"my-model", "other-model", "twin"}
    texts = {name: [row["responses"] for row in rows] for name, rows in samples.items()}
    assert texts["my-model"] == texts["twin"] != texts["other-model"]
    assert len(texts["twin"]) == len(PROMPTS)
    assert {len(row) for row in texts["twin"]} == {2}
    assert max(len(text) for row in texts["other-model"] for text in row) <= 5
    assert found["comparisons"][1]["win_rate"]["ties"] == 1.0
    assert found["ratings"]["my-model"]["value"] == pytest.approx(found["ratings"]["twin"]["value"], abs=1e-6)
    again = judge(*(f"judged/samples/{name}.jsonl" for name in ("my-model", "other-model", "twin")), "--config=longer.yaml", output="again")
    assert [c["win_rate"] for c in again["comparisons"]] == [c["win_rate"] for c in found["comparisons"]]
    cooler = judge(
        "my-model", "twin", "--config=longer.yaml", "--prompts=prompts.jsonl", "--max_new_tokens=5", "--temperature=0.01", output="cool"
    )
    first = [json.loads(line)["responses"][0] for line in Path("cool/samples/twin.jsonl").read_text(encoding="utf-8").splitlines()]
    assert cooler["prompts"] == len(PROMPTS)
    assert first != [row[0] for row in texts["twin"]]


def test_a_runs_checkpoints_answer_its_own_held_out_prompts_by_its_own_sampler(judge: Judge) -> None:
    more = ["--trainer.max_epochs=2", "--checkpoint_every=1", "--run=runs/first", "--model.init_args.policy.init_args.temperature=0.7"]
    held_out = [
        "--data.init_args.eval_prompts=lit_align.data.JsonlPrompts",
        "--data.init_args.eval_prompts.init_args.path=eval_prompts.jsonl",
    ]
    trained = run_trainer(["fit", *OWN, *more, *held_out]).model.policy
    earlier = "runs/first/checkpoints/earlier.ckpt"
    state = torch.load("runs/first/checkpoints/last.ckpt", weights_only=True)
    name = "policy.model.lm_head.weight"
    state["state_dict"][name] = state["state_dict"][name].flip(0)
    torch.save(state, earlier)
    found = judge("runs/first", earlier, "--config", str(CONFIGS / "annotator" / "function.yaml"))
    assert found["prompts"] == 4
    rows = [json.loads(line) for line in Path("judged/samples/runs-first.jsonl").read_text(encoding="utf-8").splitlines()]
    assert {row["trained_for"] for row in rows} == {"my_annotator.score"}
    assert max(len(row["responses"][0]) for row in rows) <= 6  # the run's max_new_tokens
    assert found["trained_for_judge"] == ["runs/first", earlier]
    assert f"This judge is the annotator that runs/first, {earlier} was trained for." in found["printed"]

    from lit_align.cli.sampling import Sampling

    last, before = (Sampling(CacheSampler(), 0, None, None).policy(source) for source in ("runs/first", earlier))
    weights = [policy.get_parameter("model.lm_head.weight") for policy in (trained, last, before)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(weights[0].flip(0), weights[2])
    assert last.temperature == 0.7

    stored = judge(
        "judged/samples/runs-first.jsonl",
        "eval_prompts.jsonl:prompt",
        "--config=longer.yaml",
        output="again",
    )
    assert stored["trained_for_judge"] == []
    same = ["judged/samples/runs-first.jsonl", "eval_prompts.jsonl:prompt", "--config", str(CONFIGS / "annotator" / "function.yaml")]
    assert judge(*same, output="same")["trained_for_judge"] == ["judged/samples/runs-first.jsonl"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a.jsonl"], "Expected at least two different sources to compare, got a.jsonl."),
        (["a.jsonl", "a.jsonl", "--config=longer.yaml"], "Expected at least two different sources"),
        (["a.jsonl", "b.jsonl"], "Expected a judge, data.init_args.annotator, in a config file (none was given)."),
        (["a.jsonl", "b.jsonl", "--config=longr.yaml"], "There is no config file longr.yaml"),
        (["a.jsonl", "b.jsonl", "--config=longer.yaml", "--temperature=1"], "--temperature would be ignored: every source is a file"),
        (["a.jsonl", "my-model", "--config=longer.yaml", "--temperature=-1"], "--temperature should be positive, got -1.0."),
        (["a.jsonl", "my-model", "--config=longer.yaml", "--responses=0"], "--responses should be at least 1, got 0."),
        (["a.jsonl", "no-model", "--config=longer.yaml"], "policy: no model at 'no-model'"),
        (["my-model", "other-model", "--config=longer.yaml"], "There is nothing to answer: give --prompts FILE.jsonl."),
        (["a.jsonl", "prompts.jsonl", "--config=longer.yaml"], "prompts.jsonl: expected the answers to 'a' in 'responses'"),
        (["a.jsonl", "prompts.jsonl:gold", "--config=longer.yaml"], "expected the reference answer in 'gold'"),
        (
            ["a.jsonl", "b.jsonl", "--config=longer.yaml", "--output=my-model"],
            "my-model exists already. Choose another folder with --output",
        ),
        (["a.jsonl", "none.ckpt", "--config=longer.yaml"], "is no run: there is no "),
    ],
)
def test_mistakes(arguments: list[str], message: str, judge: Judge, capsys: pytest.CaptureFixture[str]) -> None:
    write_samples("a.jsonl", [["a"]])
    write_samples("b.jsonl", [["b"]])
    with pytest.raises(SystemExit) as exit_:
        main(["judge", *arguments])
    assert exit_.value.code == 2
    assert (said := capsys.readouterr().err).startswith("lit-align: ")
    assert message in said
    assert not Path("runs/judged").exists() or not any(Path("runs/judged").iterdir())
