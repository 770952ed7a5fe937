"""The examples of docs/annotator.md and docs/judges.md do what the pages say."""

import json
import math
import re
import sys
from dataclasses import replace
from inspect import signature
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_align import annotators
from lit_align.annotators import (
    ChatAPI,
    Checklist,
    Ensemble,
    LabelFile,
    LengthPenalty,
    MeanMinusVariance,
    PairwiseJudge,
    Refreshed,
    RewardModelAnnotator,
    Rubric,
    ScoringJudge,
)
from lit_align.types import Annotator, Prompt
from tests.annotators.worlds import Fake, rollouts

PAGE, JUDGES = ((Path(__file__).parents[2] / "docs" / name).read_text(encoding="utf-8") for name in ("annotator.md", "judges.md"))


def blocks(language, page=PAGE):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


def annotator_of(content):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--annotator", type=Annotator)
    return parser.instantiate(parser.parse_object({"annotator": yaml.safe_load(content)["data"]["init_args"]["annotator"]})).annotator


def write_module(folder, monkeypatch, name, code):
    assert len(code.splitlines()) < 40
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)


def test_the_judge_of_your_own(tmp_path, monkeypatch):
    write_module(tmp_path, monkeypatch, "my_panel", blocks("python", JUDGES)[1])
    judge = annotator_of(blocks("yaml", JUDGES)[-1])
    assert isinstance(judge, PairwiseJudge)
    assert judge.backend.identity == "Panel(my-judge, my-other-judge)"
    sure, flat = (
        Fake(lambda q: [0.0, -math.inf] if q.index("good") < q.index("poor") else [-math.inf, 0.0]),
        Fake(lambda _: [math.log(0.5)] * 2),
    )
    panel = type(judge.backend)([sure, sure, flat])
    p = PairwiseJudge(panel, "helpfulness").annotate(rollouts([["good", "poor"]])).preferences
    assert p[0, 0, 1].item() == pytest.approx(5 / 6)
    panel.setup(torch.device("cpu"))
    panel.close()
    assert flat.devices == [torch.device("cpu"), None]


def test_what_is_judged_is_data():
    exec(blocks("python", JUDGES)[0], {})  # asserts what it shows


def test_the_rubric():
    judge = annotator_of(blocks("yaml", JUDGES)[1])
    assert isinstance(judge, Rubric)
    assert judge.aspects.keys() == {"correct", "kind"}
    assert judge.weights.tolist() == [3.0, 1.0]


def test_the_checklist():
    judge = annotator_of(blocks("yaml", JUDGES)[2])
    assert isinstance(judge, Checklist)
    [line] = blocks("json", JUDGES)
    row = json.loads(line)
    judge = Checklist(Fake(lambda _: [math.log(0.25)] * 4), verifiers=judge.verifiers)
    asked = rollouts([["First\n the Colosseum.", "x" * 401]], [row["prompt"]])
    annotation = judge.annotate(replace(asked, prompts=(Prompt(0, row["prompt"], meta={"checklist": row["checklist"]}),)))
    assert annotation.scores[0].tolist() == pytest.approx([(0.5 + 2) / 3, 0.5 / 3])


def test_the_verifier():
    judge = annotator_of(blocks("yaml")[1])
    asked = replace(rollouts([["So:\nAnswer: 4.", "Answer: 44"]]), prompts=(Prompt(0, "2 + 2?", reference="4."),))
    assert judge.annotate(asked).scores.tolist() == [[1.0, 0.0]]
    for name, arguments in re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE, re.MULTILINE):
        expected = ", ".join(
            f"{p.name}={p.default}" if p.default is not p.empty else p.name
            for p in signature(getattr(annotators, name)).parameters.values()
        )
        assert arguments.replace("1e-6", "1e-06") == expected, name


def test_the_annotator_of_your_own(tmp_path, monkeypatch):
    write_module(tmp_path, monkeypatch, "my_overlap", blocks("python")[0])
    annotator = annotator_of(blocks("yaml")[-1])
    asked = rollouts([["Plant a tree", "a tree a tree"], ["x", "y"]])
    annotation = annotator.annotate(replace(asked, prompts=(Prompt(0, "What?", reference="plant a Tree"), Prompt(1, "Why?"))))
    torch.testing.assert_close(annotation.scores, torch.tensor([[1 - 0.06, 2 / 3 - 0.08], [0.0, 0.0]]))
    assert annotation.valid.tolist() == [[True, True], [False, False]]
    assert annotator.identity == "ReferenceOverlap(0.02)"


def test_the_reward_model():
    annotator = annotator_of(blocks("yaml")[0])
    assert isinstance(annotator, RewardModelAnnotator)
    assert annotator.host.offload


def test_the_template(tmp_path):
    (tmp_path / "recipes.yaml").write_text(blocks("yaml", JUDGES)[0], encoding="utf-8")
    backend = Fake(lambda _: [-3.0] * 10)
    ScoringJudge(backend, str(tmp_path / "recipes.yaml"), min_mass=0).annotate(rollouts([["Boil {rice}."]], ["Rice!"]))
    [question] = backend.questions
    assert "<wish>\nRice!\n</wish>\n<recipe>\nBoil {rice}.\n</recipe>" in question
    assert question.endswith("Grade:")


def test_annotators_over_annotators():
    [nested] = [annotator_of(block) for block in blocks("yaml") if "LengthPenalty" in block]
    assert isinstance(nested, LengthPenalty)
    [ensemble] = nested.members
    assert isinstance(ensemble, Ensemble)
    assert ensemble.combine == MeanMinusVariance(0.5)
    assert [type(member) for member in ensemble.members] == [RewardModelAnnotator] * 2


def test_the_routes(tmp_path, monkeypatch):
    (tmp_path / "my_annotator.py").write_text("def score(prompt, responses):\n    return [len(text) for text in responses]\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_annotator", raising=False)
    [router] = [annotator_of(block) for block in blocks("yaml") if "Router" in block]
    said = rollouts([["a", "bb"]])
    routed = router.annotate(replace(said, prompts=(Prompt(0, "1 + 1?", meta={"kind": "maths"}),)))
    assert routed.scores.tolist() == [[1.0, 2.0]]
    assert isinstance(router.members[1], RewardModelAnnotator)


def test_the_annotator_that_learns():
    [learner] = [annotator_of(block) for block in blocks("yaml") if "Refreshed" in block]
    assert isinstance(learner, Refreshed)
    assert isinstance(learner.teacher, LabelFile)
    assert (learner.every_n_rollouts, learner.teacher.patience_minutes) == (10, 600)
    assert learner.optimizer([torch.nn.Parameter(torch.zeros(1))]).param_groups[0]["lr"] == 1e-5


def test_the_judge_behind_an_api(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    [template] = [block for block in blocks("yaml", JUDGES) if "from 0 to 9" in block and block.startswith("preamble")]
    (tmp_path / "digits.yaml").write_text(template, encoding="utf-8")
    [judge] = [annotator_of(block) for block in blocks("yaml", JUDGES) if "ChatAPI" in block]
    assert isinstance(judge, ScoringJudge)
    assert isinstance(judge.backend, ChatAPI)
    assert (judge.backend.base_url, judge.backend.api_key_env, judge.backend.readout) == ("http://localhost:8000/v1", None, "logprobs")
    judge.asker.backend = Fake(lambda _: [0.0, *[-math.inf] * 9])
    assert judge.annotate(rollouts([["Four."]], ["2 + 2?"])).scores.tolist() == [[-1.0]]
    assert "<question>\n2 + 2?\n</question>" in judge.asker.backend.questions[0]


@pytest.mark.parametrize(("k", "opponents", "questions"), [(4, None, 4 * 3), (4, 2, 2 * 4), (2, None, 2)])
def test_the_price_of_comparing(k, opponents, questions, tmp_path):
    backend = Fake(lambda _: [-0.7, -0.7])
    PairwiseJudge(backend, "helpfulness", opponents=opponents).annotate(rollouts([list("abcdef"[:k])]))
    assert len(backend.questions) == questions


def test_every_file_that_is_named_exists():
    folder = Path(__file__).parents[2] / "configs" / "annotator"
    assert set(re.findall(r"`(\w+\.yaml)` \|", PAGE)) == {path.name for path in folder.iterdir()}
