"""A run's policy as a Hugging Face folder."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from lit_align import __version__
from lit_align.annotators import RewardModelAnnotator
from lit_align.cli import main
from lit_align.cli.trainer import run_trainer
from tests.annotators.worlds import rollouts
from tests.cli.shipped import CONFIGS, OWN, SMALL
from tests.tiny import PROMPTS


def greedy(model: torch.nn.Module, tokenizer: object) -> list[list[int]]:
    """Twelve tokens after every prompt."""
    answers = []
    for prompt in PROMPTS:
        tokens = tokenizer(prompt, return_tensors="pt")  # pyright: ignore[reportCallIssue]
        answers.append(model.generate(**tokens, max_new_tokens=12, do_sample=False, pad_token_id=0)[0].tolist())  # pyright: ignore[reportCallIssue]
    return answers


@pytest.fixture
def trained(world: Path) -> torch.nn.Module:
    """The policy in memory after ``fit --run runs/first``."""
    more = ["--trainer.max_epochs=3", "--checkpoint_every=2", "--run=runs/first", "--model.init_args.optimizer.init_args.lr=0.03"]
    return run_trainer(["fit", *OWN, *more]).model.policy.eval()


def test_the_folder_generates_what_the_policy_in_memory_does(trained: torch.nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    main(["export", "runs/first", "--output=shared/mine"])
    assert capsys.readouterr().out == "The policy is in shared/mine. Read README.md there before you share it.\n"
    tokenizer = AutoTokenizer.from_pretrained("shared/mine")
    exported = AutoModelForCausalLM.from_pretrained("shared/mine")
    expected = greedy(trained.model, tokenizer)  # pyright: ignore[reportArgumentType]
    assert greedy(exported, tokenizer) == expected
    assert greedy(AutoModelForCausalLM.from_pretrained("my-model"), tokenizer) != expected  # training did something
    weights = trained.model.state_dict()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
    assert all(torch.equal(value, weights[name]) for name, value in exported.state_dict().items())


LORA = [f"--model.init_args.policy.init_args.lora.{key}" for key in ("rank=4", "alpha=8", "targets=[q_proj, v_proj, down_proj]")]


def test_an_adapter_alone_makes_the_base_model_say_what_the_policy_does(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ["--trainer.max_epochs=3", "--run=runs/first", "--model.init_args.optimizer.init_args.lr=0.1"]
    trained = run_trainer(["fit", *OWN, *LORA, *more]).model.policy.eval()
    capsys.readouterr()
    main(["export", "runs/first", "--adapter"])
    assert capsys.readouterr().out == "The adapter is in runs/first/export. Read README.md there before you share it.\n"
    folder = Path("runs/first/export")
    assert {path.name for path in folder.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    tokenizer, base = AutoTokenizer.from_pretrained("my-model"), AutoModelForCausalLM.from_pretrained("my-model")
    untrained = greedy(base, tokenizer)
    loaded = PeftModel.from_pretrained(base, str(folder))
    expected = greedy(trained.model, tokenizer)  # pyright: ignore[reportArgumentType]
    assert greedy(loaded, tokenizer) == expected != untrained
    tokens = torch.tensor([[2, 5, 7, 3]])
    torch.testing.assert_close(loaded(tokens).logits, trained.model(tokens).logits, atol=1e-5, rtol=0)  # pyright: ignore
    main(["export", "runs/first", "--output=merged"])
    assert greedy(AutoModelForCausalLM.from_pretrained("merged"), tokenizer) == expected

    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "This folder holds a LoRA adapter alone. It needs its base model, my-model:" in card
    assert 'PeftModel.from_pretrained(base, "FOLDER")' in card
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "peft"
    assert json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"] == "my-model"


def test_a_whole_model_has_no_adapter(trained: torch.nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["export", "runs/first", "--adapter"])
    assert exit_.value.code == 2
    assert "runs/first trained the whole model: it has no adapter" in (said := capsys.readouterr().err)
    assert "Leave --adapter out" in said
    assert not Path("runs/first/export").exists()


def test_another_checkpoint_of_the_run(trained: torch.nn.Module) -> None:
    state = torch.load("runs/first/checkpoints/last.ckpt", weights_only=True)
    name = "policy.model.lm_head.weight"
    state["state_dict"][name] = state["state_dict"][name] + 1
    torch.save(state, "other.ckpt")
    main(["export", "runs/first", "--ckpt_path=other.ckpt"])
    exported = AutoModelForCausalLM.from_pretrained("runs/first/export")
    torch.testing.assert_close(exported.lm_head.weight, trained.model.lm_head.weight + 1)  # pyright: ignore


def test_the_card_counts_the_rollouts_of_its_checkpoint(trained: torch.nn.Module) -> None:
    main(["export", "runs/first", "--ckpt_path=runs/first/checkpoints/rollout-00001.ckpt"])
    assert "| rollouts | 2 of 8" in Path("runs/first/export/README.md").read_text(encoding="utf-8")


def test_the_card_says_where_the_model_comes_from(trained: torch.nn.Module) -> None:
    main(["export", "runs/first"])
    card = Path("runs/first/export/README.md").read_text(encoding="utf-8")
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head)["library_name"] == "transformers"
    assert "base_model" not in yaml.safe_load(head)  # a local folder is no name on the hub
    for row in (
        "| base model | my-model |",
        "| algorithm | DAR |",
        "| rollouts | 3 of 8 prompts x 4 responses |",
        "| optimizer steps | 6 |",
        "| seed | 0 |",
        "| annotator | FunctionAnnotator(function=my_annotator.score, concurrency=16) |",
    ):
        assert row in body
    assert "| prompts | JsonlPrompts(path=prompts.jsonl" in body
    assert __version__ in body
    settings = yaml.safe_load(body.split("```yaml\n")[1].split("```")[0])
    assert settings["alpha"] == settings["beta"] == 0.125
    assert "policy" not in settings


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["runs/none"], "runs/none is no run: there is no runs/none/config.yaml. Give the folder that fit wrote (its --run)."),
        (["runs/first", "--ckpt_path=none.ckpt"], "There is no checkpoint none.ckpt."),
        (["runs/first", "--ckpt_path=runs"], "runs is a sharded checkpoint."),
        (["runs/first", "--output=my-model"], "my-model exists already. Choose another folder with --output, or remove it."),
        (["runs/first", "--ckpt_path=bad.ckpt"], "bad.ckpt doesn't fit runs/first/config.yaml"),
    ],
)
def test_what_cannot_be_exported(
    arguments: list[str], message: str, world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if "runs/first" in arguments:
        run_trainer(["fit", *OWN, "--trainer.max_epochs=1", "--run=runs/first"])
        state = torch.load("runs/first/checkpoints/last.ckpt", weights_only=True)
        torch.save(state | {"state_dict": {"policy.model.nothing": torch.zeros(1)}}, "bad.ckpt")
    with pytest.raises(SystemExit) as exit_:
        main(["export", *arguments])
    assert exit_.value.code == 2
    assert f"lit-align: {message}" in capsys.readouterr().err


def test_a_reward_model_is_a_classifier_that_annotates(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ['{"prompt": "a", "chosen": "bb", "rejected": "c"}', '{"prompt": "", "chosen": "dd", "rejected": "ee"}'] * 4
    Path("pairs.jsonl").write_text("\n".join(lines), encoding="utf-8")
    configs = [f"--config={CONFIGS / file}" for file in ("algorithm/reward_model.yaml", "experiment/local_reward.yaml")]
    small = ["--data.init_args.prompts_per_rollout=8", "--trainer.max_epochs=2", "--model.init_args.data_smoothing=0.1"]
    fast = ["--model.init_args.optimizer.init_args.lr=0.01", "--data.init_args.max_response_tokens=30"]
    module = run_trainer(
        ["fit", *configs, *[option for option in SMALL if ".sampler." not in option], *small, *fast, "--run=runs/reward"]
    ).model
    capsys.readouterr()
    main(["export", "runs/reward", "--output=scorer"])
    assert capsys.readouterr().out == "The reward model is in scorer. Read README.md there before you share it.\n"
    answers = rollouts([["bb", "c"], ["dd", "e e"]], ["a", ""])
    found = RewardModelAnnotator("scorer").annotate(answers).scores
    rows = [[module.network.encode_response(p, text) for text in texts] for p, texts in zip(answers.prompts, answers.texts, strict=True)]
    with module.network.inference():
        expected = [[float(module.network(torch.tensor([row]), torch.ones(1, len(row)).bool())) for row in line] for line in rows]
    torch.testing.assert_close(found, torch.tensor(expected), atol=1e-5, rtol=0)
    card = Path("scorer/README.md").read_text(encoding="utf-8")
    assert yaml.safe_load(card.split("---\n")[1])["pipeline_tag"] == "text-classification"
    for said in ("my-model with a head of one number", "| algorithm | RewardModel |", "lit_align.annotators.RewardModelAnnotator"):
        assert said in card
    assert "temperature | none" in card
