"""The examples of docs/annotator.md do what the page says."""

import math
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser

from lit_align.annotators import ChatAPI, RewardModelAnnotator, ScoringJudge
from lit_align.types import Annotator, Prompt
from tests.annotators.worlds import Fake, rollouts

PAGE = (Path(__file__).parents[2] / "docs" / "annotator.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def annotator_of(content):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--annotator", type=Annotator)
    return parser.instantiate(parser.parse_object({"annotator": yaml.safe_load(content)["data"]["init_args"]["annotator"]})).annotator


def test_the_annotator_of_your_own(tmp_path, monkeypatch):
    [code] = blocks("python")
    assert len(code.splitlines()) < 40
    (tmp_path / "my_overlap.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_overlap", raising=False)
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
    (tmp_path / "recipes.yaml").write_text(blocks("yaml")[1], encoding="utf-8")
    backend = Fake(lambda _: [-3.0] * 10)
    ScoringJudge(backend, str(tmp_path / "recipes.yaml"), min_mass=0).annotate(rollouts([["Boil {rice}."]], ["Rice!"]))
    [question] = backend.questions
    assert "<wish>\nRice!\n</wish>\n<recipe>\nBoil {rice}.\n</recipe>" in question
    assert question.endswith("Grade:")


def test_the_judge_behind_an_api(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits.yaml").write_text(blocks("yaml")[3], encoding="utf-8")
    judge = annotator_of(blocks("yaml")[2])
    assert isinstance(judge, ScoringJudge)
    assert isinstance(judge.backend, ChatAPI)
    assert (judge.backend.base_url, judge.backend.api_key_env, judge.backend.readout) == ("http://localhost:8000/v1", None, "logprobs")
    judge.asker.backend = Fake(lambda _: [0.0, *[-math.inf] * 9])
    assert judge.annotate(rollouts([["Four."]], ["2 + 2?"])).scores.tolist() == [[-1.0]]
    assert "<question>\n2 + 2?\n</question>" in judge.asker.backend.questions[0]


@pytest.mark.parametrize(("k", "opponents", "questions"), [(4, None, 4 * 3), (4, 2, 2 * 4), (2, None, 2)])
def test_the_price_of_comparing(k, opponents, questions, tmp_path):
    from lit_align.annotators import PairwiseJudge

    backend = Fake(lambda _: [-0.7, -0.7])
    PairwiseJudge(backend, "helpfulness", opponents=opponents).annotate(rollouts([list("abcdef"[:k])]))
    assert len(backend.questions) == questions


def test_every_file_that_is_named_exists():
    folder = Path(__file__).parents[2] / "configs" / "annotator"
    assert set(re.findall(r"`(\w+\.yaml)` \|", PAGE)) == {path.name for path in folder.iterdir()}
