"""What the page on prompts shows of templates, stop strings and lengths runs, and does what it says."""

import json
import re
from pathlib import Path

import pytest

from lit_align.cli import main
from lit_align.cli.trainer import run_trainer
from lit_align.data import OnlineDataModule
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import Prompt
from tests.tokenizers import CHATML, of_bytes, write_with_tokenizer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "prompts.md").read_text(encoding="utf-8").partition("## Chat templates")[2]
TEMPLATE, STOP, _SEARCH, LENGTHS = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(JINJA,) = re.findall(r"^```jinja chat\.jinja\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
BASE = [
    f"--config={ROOT / 'configs' / name}" for name in ("algorithm/dar_anchored.yaml", "experiment/local.yaml", "annotator/function.yaml")
]
SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.accelerator=cpu",
    "--trainer.enable_model_summary=false",
    "--data.init_args.sampler.init_args.max_new_tokens=6",
]
SYSTEM, ASKED = {"role": "system", "content": "be kind"}, {"role": "user", "content": "why?"}
SAID = [{"role": "user", "content": "who? " * 9}, {"role": "assistant", "content": "I. " * 9}]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, as a reader has it: a model, conversations, an annotator and the page's template."""
    write_with_tokenizer(tmp_path / "my-model", of_bytes(), context=512)
    rows = [{"messages": [SYSTEM, *SAID, ASKED | {"content": f"why {i}?"}]} for i in range(32)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (tmp_path / "my_annotator.py").write_text("def score(prompt, responses):\n    return [float(len(r)) for r in responses]\n")
    (tmp_path / "chat.jinja").write_text(JINJA, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_annotator", raising=False)
    return tmp_path


def test_the_template_is_the_one_that_tests_use():
    assert CHATML.read_text(encoding="utf-8") == JINJA


def test_the_three_examples_run_together(folder):
    for number, text in enumerate((TEMPLATE, STOP, LENGTHS)):
        (folder / f"{number}.yaml").write_text(text, encoding="utf-8")
    cli = run_trainer(["fit", *BASE, "--config=0.yaml", "--config=1.yaml", "--config=2.yaml", *SMALL, "--run=runs/first"])
    policy, data = cli.model.policy, cli.datamodule
    assert isinstance(policy, CausalPolicy)
    assert isinstance(data, OnlineDataModule)
    assert policy.template_options == {"thinking": False}
    assert isinstance(data.sampler, CacheSampler)
    assert data.sampler.stop == ("\n\n", "\nUser:", "<|im_end|>")
    assert cli.trainer.global_step == 1
    read = [policy.tokenizer.decode(prompt.tokens) for prompt in data.pool_of(data.prompts, 6).in_order()]
    start, end = "<bos><|im_start|>system\nbe kind<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    assert read == [f"{start}<|im_start|>user\nwhy {i}?{end}" for i in range(32)]
    whole = policy.encode(Prompt(id=0, content=(SYSTEM, *SAID, ASKED)))
    assert len(whole) > 100


def test_an_option_of_the_template_on_the_command_line(folder):
    (folder / "0.yaml").write_text(TEMPLATE, encoding="utf-8")
    option = "--model.init_args.policy.init_args.template_options.thinking=true"
    policy = run_trainer(["fit", *BASE, "--config=0.yaml", option, *SMALL, "--run=runs/second"]).model.policy
    assert isinstance(policy, CausalPolicy)
    assert policy.template_options == {"thinking": True}


def test_a_mistaken_option_is_one_screen(folder, capsys):
    (folder / "0.yaml").write_text(TEMPLATE.replace("thinking: false", "thinkin: false"), encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["fit", *BASE, "--config=0.yaml", *SMALL, "--run=runs/third"])
    said = capsys.readouterr().err
    assert "template_options sets thinkin, but the chat template of 'my-model' never reads it" in said
    assert "Traceback" not in said
    assert len(said.splitlines()) < 12
