"""What docs/model.md shows builds, runs and is saved; so does the configuration for a pretrained model."""

import re
from pathlib import Path

import pytest
import torch

from lit_align.cli.trainer import run_trainer
from lit_align.models import CausalPolicy, LoRA
from tests.tiny import write_prompts, write_tiny

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "model.md").read_text(encoding="utf-8")
YAML = re.findall(r"^```yaml\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
(SCRIPT,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
ALGORITHM, LOCAL, FUNCTION, QWEN = (
    str(ROOT / "configs" / f"{name}.yaml")
    for name in ("algorithm/dar_anchored", "experiment/local", "annotator/function", "experiment/qwen_lora")
)
SMALL = ["--data.init_args.sampler.init_args.max_new_tokens=6", "--trainer.max_epochs=1", "--trainer.enable_model_summary=false"]
ON_CPU = ["--trainer.accelerator=cpu", "--trainer.devices=1"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, as a reader has it: a model, prompts and an annotator."""
    write_tiny(tmp_path / "my-model", context=512)
    write_prompts(tmp_path / "prompts.jsonl", [a + b for a in "abcdefgh" for b in "abcdefgh"])
    (tmp_path / "my_annotator.py").write_text('def score(prompt, responses):\n    return [float(r.count("a")) for r in responses]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(__import__("sys").modules, "my_annotator", raising=False)
    return tmp_path


def fit(*arguments):
    return run_trainer(["fit", "--config", ALGORITHM, *arguments, *SMALL, *ON_CPU, "--run=runs/first"])


@pytest.mark.parametrize("text", YAML, ids=["whole", "lora"])
def test_the_examples_run(text, folder):
    (folder / "mine.yaml").write_text(text)
    policy = fit("--config", LOCAL, "--config", FUNCTION, "--config", "mine.yaml").model.policy
    assert isinstance(policy, CausalPolicy)
    assert policy.model.is_activation_checkpointing
    assert (policy.lora, policy.reference_offload) == ((LoRA(), False) if "lora" in text else (None, True))


def test_the_script_saves_what_the_lora_example_trained(folder):
    (folder / "mine.yaml").write_text(YAML[1])
    rate = "--model.init_args.optimizer.init_args.lr=0.05"
    trained = fit(
        "--config", LOCAL, "--config", FUNCTION, "--config", "mine.yaml", rate, "--model.init_args.policy.init_args.dtype=float32"
    ).model.policy
    exec(compile(SCRIPT, "save_adapter.py", "exec"), {})
    saved = CausalPolicy("my-aligned-model")
    tokens, mask = torch.tensor([[2, 5, 7, 3]]), torch.ones(1, 4, dtype=torch.bool)
    said = [each.eval().next_token_logits(tokens, mask)[0] for each in (trained, saved, CausalPolicy("my-model"))]
    torch.testing.assert_close(said[1], said[0], atol=1e-4, rtol=0)
    assert not torch.allclose(said[2], said[0], atol=1e-2)


@pytest.mark.parametrize("form", ["as it stands", "with a class path"])
def test_the_file_for_a_pretrained_model_runs(form, folder):
    options = ["--model.init_args.policy.init_args.path=my-model"]
    if form == "with a class path":
        options.append("--model.init_args.policy.init_args.lora.class_path=lit_align.models.LoRA")
        options.append("--model.init_args.policy.init_args.lora.init_args.rank=2")
    cli = fit("--config", QWEN, *options)
    policy = cli.model.policy
    assert isinstance(policy, CausalPolicy)
    assert policy.lora == LoRA(rank=16 if form == "as it stands" else 2)
    assert (policy.dtype, policy.attn_implementation, cli.trainer.precision) == ("bfloat16", "sdpa", "bf16-mixed")
    assert policy.model.is_activation_checkpointing
    assert cli.trainer.global_step == 1
    assert any("lora_B" in name and parameter.abs().max() > 0 for name, parameter in policy.named_parameters())
