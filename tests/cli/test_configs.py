"""Every file under configs/ builds what it says, with the real command line and folders that a laptop writes in a second."""

import inspect
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, ModelParallelStrategy
from transformers.optimization import Adafactor

import callbacks
from benchmarks.quickstart_table import SETTINGS, row
from benchmarks.stories import Gold, Proxy
from lit_align.algorithms import (
    DAR,
    DPO,
    GAE,
    PPO,
    SAIL,
    SFT,
    Above,
    AlphaDivergence,
    BatchMean,
    BatchStd,
    BestVersusWorst,
    Clip,
    ClippedWeights,
    GroupWeights,
    Initial,
    KLTarget,
    MacroGAE,
    MovingAverage,
    PreviousRound,
    ReferenceStd,
    SumOver,
    group_centred,
    leave_one_out,
)
from lit_align.annotators import FunctionAnnotator
from lit_align.cli.trainer import AlignmentCLI, run_trainer
from lit_align.data import (
    DatasetStream,
    DemonstrationDataModule,
    JsonlPrompts,
    MixedDataModule,
    MixedPrompts,
    OnlineDataModule,
    PreferenceDataModule,
)
from lit_align.generation import Bfloat16Sampler, CacheSampler, EngineSampler, VLLMEngine
from lit_align.models import CausalPolicy, LoRA, ValueModel
from lit_align.quickstart.rules import gold_score, proxy_score
from lit_align.quickstart.world import write_world
from lit_align.types import Source
from tests.tiny import PROMPTS, write_prompts, write_tiny

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob("*.y*ml"))
ANCHORED, LOCAL, FUNCTION = "algorithm/dar_anchored.yaml", "experiment/local.yaml", "annotator/function.yaml"
MIXED = "data/fixed_and_fresh.yaml"

# What a file is composed with, by its name or that of its folder. "..." is the file itself.
RULES: dict[str, tuple[str, ...]] = {
    "algorithm/dpo_offline.yaml": ("...", "experiment/local_model.yaml", "data/pairs.yaml"),
    "experiment/local_model.yaml": ("algorithm/dpo_offline.yaml", "...", "data/pairs.yaml"),
    "data/pairs.yaml": ("algorithm/simpo.yaml", "experiment/local_model.yaml", "..."),
    "algorithm/sft.yaml": ("...", "experiment/local_sft.yaml"),
    "experiment/local_sft.yaml": ("algorithm/sft.yaml", "..."),
    "algorithm/reward_model.yaml": ("...", "experiment/local_reward.yaml"),
    "experiment/local_reward.yaml": ("algorithm/reward_model.yaml", "..."),
    "algorithm/sail_dp.yaml": ("...", LOCAL, FUNCTION, MIXED),
    "algorithm/sail_pp.yaml": ("...", LOCAL, FUNCTION, MIXED),
    "algorithm/sail_pr.yaml": ("...", LOCAL, FUNCTION, MIXED),
    "algorithm/sail_pr_revkl.yaml": ("...", LOCAL, FUNCTION, MIXED),
    MIXED: ("algorithm/sail_pr.yaml", LOCAL, FUNCTION, "..."),
    "experiment/chain/answers.yaml": ("algorithm/rloo.yaml", "..."),
    "experiment/chain/reward_model.yaml": ("algorithm/reward_model.yaml", "..."),
    "experiment/chain/ppo.yaml": ("algorithm/ppo.yaml", "quickstart.yaml", "..."),
    "experiment/rlaif/answers.yaml": ("algorithm/rloo.yaml", "..."),
    "experiment/rlaif/reward_model.yaml": ("algorithm/reward_model.yaml", "..."),
    "experiment/rlaif/dar.yaml": (ANCHORED, "quickstart.yaml", "..."),
    "experiment/chain_stories/sft.yaml": ("algorithm/sft.yaml", "..."),
    "experiment/chain_stories/answers.yaml": ("algorithm/rloo.yaml", "..."),
    "experiment/chain_stories/reward_model.yaml": ("algorithm/reward_model.yaml", "..."),
    "experiment/chain_stories/ppo.yaml": ("algorithm/ppo.yaml", "experiment/stories.yaml", "..."),
    LOCAL: (ANCHORED, "...", FUNCTION),
    "algorithm": ("...", LOCAL, FUNCTION),
    "annotator": (ANCHORED, LOCAL, "..."),
    "callbacks": (ANCHORED, LOCAL, FUNCTION, "..."),
    "data": (ANCHORED, LOCAL, FUNCTION, "..."),
    "experiment/refresh.yaml": (ANCHORED, "quickstart.yaml", "..."),
    "experiment": (ANCHORED, "..."),
    "logger": (ANCHORED, LOCAL, FUNCTION, "..."),
    "sampler": (ANCHORED, LOCAL, FUNCTION, "..."),
    "strategy": (ANCHORED, LOCAL, FUNCTION, "..."),
    "quickstart.yaml": (ANCHORED, "..."),
    "quickstart_warmup.yaml": ("algorithm/sft.yaml", "..."),
}

# Where the files look for models and for prompts; worlds and the lexicon are written beside them.
MODEL_FOLDERS = (
    "my-model",
    "runs/quickstart/initial",
    "runs/quickstart/policy",
    "runs/chain/reward/export",
    "runs/chain-stories/sft/export",
    "runs/chain-stories/reward/export",
    "data/stories260K",
)
PROMPT_FILES = (
    "prompts.jsonl",
    "more_prompts.jsonl",
    "prompts/train.jsonl",
    "eval_prompts.jsonl",
    "runs/stories-world/prompts.jsonl",
    "runs/stories-world/eval_prompts.jsonl",
    "data/hh_harmless_base/dev.jsonl",
    "runs/chain/answers/predictions.jsonl",
    "runs/quickstart-rlaif/answers/predictions.jsonl",
    "runs/quickstart-rlaif/held-out/predictions.jsonl",
    "runs/chain-stories/answers/predictions.jsonl",
)

# What a machine for tests may lack, by the file that asks for it, and what stands in.
STAND_INS: dict[str, dict[str, str]] = {
    "strategy/ddp.yaml": {"trainer.accelerator": "cpu", "trainer.devices": "1"},  # a GPU
    "strategy/deepspeed_zero2.yaml": {"trainer.accelerator": "cpu", "trainer.devices": "1"},
    "strategy/deepspeed_zero3.yaml": {"trainer.accelerator": "cpu", "trainer.devices": "1"},
    "strategy/fsdp2.yaml": {"trainer.accelerator": "cpu"},
    "experiment/qwen_lora.yaml": {  # a hub and a GPU
        "model.init_args.policy.init_args.path": "my-model",
        "trainer.accelerator": "cpu",
    },
}


# The package that a file needs and a machine may lack.
PACKAGES = {"logger/wandb.yaml": "wandb", "logger/mlflow.yaml": "mlflow"}


def skipped_without(file: str) -> Any:
    """The file, as a parameter that is skipped where its package is missing."""
    package = PACKAGES.get(file)
    missing = package is not None and find_spec(package) is None
    return pytest.param(file, marks=pytest.mark.skipif(missing, reason=f"{package} is not installed"))


@pytest.fixture(scope="module", autouse=True)
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The folder where all that the files name is to be found; nothing is run in it."""
    folder = tmp_path_factory.mktemp("world")
    for name in MODEL_FOLDERS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_tiny(folder / name, context=256)
    write_world(folder / "runs" / "quickstart" / "world", 0, 8, 8, 8)
    for name in PROMPT_FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_prompts(folder / name)
    for name in ("demonstrations.jsonl", "runs/stories-world/demonstrations.jsonl"):
        (folder / name).write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
    for name in ("pairs.jsonl", "eval_pairs.jsonl"):
        (folder / name).write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n', encoding="utf-8")
    (folder / "data" / "sentiment_vader").mkdir()
    (folder / "data" / "sentiment_vader" / "vader_lexicon.txt").write_text("happy\t2.7\t0.9\nsad\t-2.1\t0.9\n", encoding="utf-8")
    (folder / "my_annotator.py").write_text("def score(prompt, responses):\n    return [1.0 for _ in responses]\n", encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("LIT_ALIGN_DATA", str(folder / "data"))
        patch.setattr("sys.path", [str(folder), *sys.path])
        patch.delitem(sys.modules, "my_annotator", raising=False)
        patch.setattr("lightning.pytorch.cli.LightningCLI._run_subcommand", lambda *_: None)
        yield
    sys.modules.pop("my_annotator", None)


def composed(file: str) -> list[str]:
    """The files that a file is used with, itself among them."""
    rule = RULES.get(file, RULES.get(file.split("/")[0]))
    assert rule is not None, f"configs/{file} has no rule here: say what it is composed with."
    return [file if part == "..." else part for part in rule]


@cache
def build(*files: str, **overrides: str) -> AlignmentCLI:
    """What ``lit-align fit`` builds of these files, before it fits."""
    configs = (f"--config={CONFIGS / file}" for file in files)
    return run_trainer(["fit", "--trainer.accelerator=cpu", "--trainer.devices=1", *configs, *(f"--{k}={v}" for k, v in overrides.items())])


def build_composed(file: str) -> AlignmentCLI:
    """What is built of a file among those that it is used with."""
    return build(*composed(file), **STAND_INS.get(file, {}))


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Every value of a file by its dotted path; a class named without arguments is its ``class_path``."""
    if isinstance(node, Mapping):
        return {k: v for name, child in node.items() for k, v in leaves(child, f"{path}.{name}" if path else name).items()}
    if isinstance(node, list) and any(isinstance(child, Mapping) for child in node):
        return {k: v for i, child in enumerate(node) for k, v in leaves(child, f"{path}.{i}").items()}
    return {path: node}


def read(file: Path | str) -> dict[str, Any]:
    """The leaves of a shipped file, or of one elsewhere."""
    return leaves(yaml.safe_load((CONFIGS / file).read_text(encoding="utf-8")))


def parsed(cli: AlignmentCLI) -> dict[str, Any]:
    """What ``config.yaml`` of the run would hold."""
    return leaves(yaml.safe_load(cli.parser.dump(cli.config, skip_none=False))["fit"])


def same(one: Any, other: Any) -> bool:
    """Equal, or two names of one object."""
    return one == other or (isinstance(one, str) and isinstance(other, str) and locate(one) is locate(other) is not None)


@pytest.mark.parametrize("file", [skipped_without(file) for file in FILES])
def test_a_file_builds_and_nothing_that_it_says_is_lost(file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # as the file says
    cli = build_composed(file)
    found = parsed(cli)
    for path, value in read(file).items():
        if path in STAND_INS.get(file, {}):
            assert str(value) != STAND_INS[file][path], f"{file} no longer asks for {path}: its stand-in can go"
        else:
            assert same(found.get(path, found.get(f"{path}.class_path")), value), path


def printed(capsys: pytest.CaptureFixture[str], *files: Path | str, option: str = "--print_config") -> str:
    """What ``--print_config`` shows of these files."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        run_trainer(["fit", *(f"--config={file}" for file in files), option])
    assert exit_.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("file", [file for file in FILES if file.startswith(("experiment/", "quickstart"))])
def test_what_is_printed_loads_back(file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole, short = tmp_path / "whole.yaml", tmp_path / "short.yaml"
    files = [CONFIGS / part for part in composed(file)]
    whole.write_text(printed(capsys, *files), encoding="utf-8")
    short.write_text(printed(capsys, *files, option="--print_config=skip_default"), encoding="utf-8")
    found = read(whole)
    for path, value in read(file).items():
        assert same(found.get(path, found.get(f"{path}.class_path")), value), path
    assert printed(capsys, whole) == printed(capsys, short) == whole.read_text(encoding="utf-8")
    assert 2 * len(read(short)) < len(found)


def test_what_a_user_chose_is_printed_first(capsys: pytest.CaptureFixture[str]) -> None:
    said = yaml.safe_load(printed(capsys, *(CONFIGS / part for part in composed(LOCAL))))
    assert list(said)[:3] == ["model", "data", "trainer"]
    assert said["run"] == "runs/unnamed"
    for part in ("model", "data"):
        assert list(said[part]) == ["class_path", "init_args"]
    assert next(iter(said["model"]["init_args"])) == "policy"
    assert next(iter(said["data"]["init_args"])) == "prompts"


def test_the_table_of_the_quickstart_has_every_algorithm_that_samples() -> None:
    sampled = ("lit_align.data.OnlineDataModule", "lit_align.data.MixedDataModule")
    files = [file for file in FILES if file.startswith("algorithm/") and read(file)["data.class_path"] in sampled]
    assert sorted(SETTINGS) == sorted(Path(file).stem for file in files)


@pytest.mark.parametrize("algorithm", SETTINGS)
def test_what_the_table_of_the_quickstart_sets_is_taken(algorithm: str) -> None:
    options = {f"model.init_args.{name}": str(value) for name, value in SETTINGS[algorithm].items()}
    found = parsed(build(f"algorithm/{algorithm}.yaml", "quickstart.yaml", **options))
    assert {name: found[name] for name in options} == {name: float(value) for name, value in options.items()}
    assert found["data.init_args.responses_per_prompt"] == 4


def test_the_table_of_the_quickstart_has_a_row_for_a_run() -> None:
    names = ("win_rate", "win_rate_low", "win_rate_high", "score", "reference_score", "kl_reference")
    run = {"algorithm": "dpo", "seed": 1, "settings": SETTINGS["dpo"]} | {name: i / 8 for i, name in enumerate(names)}
    assert row(run) == ["`dpo`", "1", "lr 0.0003", "0.00 (0.12 to 0.25)", "0.50", "0.38", "0.6"]


def test_every_entry_of_the_tables_is_for_a_file_that_exists() -> None:
    assert {name for name in RULES if not any(file.startswith(name) for file in FILES)} == set()
    assert STAND_INS.keys() | PACKAGES.keys() <= set(FILES)


def optimizer_of(cli: AlignmentCLI) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer and the schedule that the Trainer would use."""
    made: Any = cli.model.configure_optimizers()
    return (made["optimizer"], made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else (made, None)


def test_dar_is_the_published_setting() -> None:
    cli = build("algorithm/dar.yaml", LOCAL, FUNCTION)
    dar, data = cli.model, cli.datamodule
    assert isinstance(dar, DAR)
    assert (dar.alpha, dar.beta, dar.kl_target) == (0.005, 0.045, None)
    assert (dar.weighting, dar.scale, dar.baseline) == (ClippedWeights(20.0), BatchStd(), group_centred)
    optimizer, schedule = optimizer_of(cli)
    assert isinstance(optimizer, Adafactor)
    (group,) = optimizer.param_groups
    assert (group["weight_decay"], group["scale_parameter"], group["relative_step"]) == (0.0, False, False)
    assert tuple(group["eps"]) == (1e-30, 1e-3)
    rates = []
    for _ in range(17):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-6 / 15, rel=1e-3)
    assert rates[14] == pytest.approx(1e-6 * (14 + 1 / 15) / 15, rel=1e-3)
    assert rates[15:] == pytest.approx([1e-6, 1e-6], rel=1e-9)
    assert isinstance(data, OnlineDataModule)
    assert (data.prompts_per_rollout, data.responses_per_prompt, data.micro_batch_prompts, data.inner_epochs) == (32, 4, 8, 1)
    assert cli.trainer.accumulate_grad_batches * data.micro_batch_prompts == data.prompts_per_rollout, "one optimizer step per rollout"
    assert dar.policy.temperature == 1.0


def test_the_defaults_of_the_class_are_those_of_its_file() -> None:
    built, default = build("algorithm/dar.yaml", LOCAL, FUNCTION).model, inspect.signature(DAR).parameters
    said = [path.split(".")[2] for path in read("algorithm/dar.yaml") if path.startswith("model.init_args.")]
    for name in ("alpha", "beta", "weighting", "baseline", "scale"):
        assert name in said
        assert default[name].default == getattr(built, name), name
    for algorithm in ("dar", "sft"):
        online = inspect.signature(type(build_composed(f"algorithm/{algorithm}.yaml").datamodule)).parameters
        for path, value in read(f"algorithm/{algorithm}.yaml").items():
            if path.startswith("data.init_args."):
                assert online[path.removeprefix("data.init_args.")].default == value, path


def test_anchored_dar_keeps_its_unit() -> None:
    cli = build(ANCHORED, LOCAL, FUNCTION)
    dar = cli.model
    assert isinstance(dar, DAR)
    assert (dar.alpha, dar.beta, dar.kl_target) == (0.125, 0.125, None)
    assert (dar.weighting, dar.scale, dar.baseline) == (GroupWeights(), ReferenceStd(), leave_one_out)
    optimizer, schedule = optimizer_of(cli)
    assert type(optimizer) is torch.optim.AdamW
    assert (optimizer.defaults["lr"], optimizer.defaults["weight_decay"], schedule) == (1e-6, 0.0, None)
    assert isinstance(cli.datamodule, OnlineDataModule)
    assert cli.trainer.accumulate_grad_batches * cli.datamodule.micro_batch_prompts == cli.datamodule.prompts_per_rollout


def test_ppo_is_the_published_setting() -> None:
    cli = build("algorithm/ppo.yaml", LOCAL, FUNCTION)
    ppo, data = cli.model, cli.datamodule
    assert isinstance(ppo, PPO)
    assert (ppo.beta, ppo.missing_eos, ppo.centre, ppo.whiten_rewards, ppo.whiten_advantages) == (0.05, -1.0, True, True, True)
    assert (ppo.credit, ppo.surrogate, ppo.value_clip, ppo.value_weight) == (GAE(gamma=1.0, lam=0.95), Clip(0.2, 0.2), 0.2, 0.1)
    assert (ppo.kl_target, ppo.kl_stop, ppo.entropy, ppo.critic_settings) == (None, None, 0.0, {})
    assert isinstance(ppo.critic, ValueModel)
    assert ppo.critic.path == ppo.policy.path == "my-model"
    optimizer, schedule = optimizer_of(cli)
    assert type(optimizer) is torch.optim.AdamW
    assert [(group["lr"], group["eps"], group["weight_decay"]) for group in optimizer.param_groups] == [(3e-6, 1e-5, 0.0)] * 2
    assert schedule is None
    assert isinstance(data, OnlineDataModule)
    assert (data.responses_per_prompt, data.inner_epochs, data.missing_eos_penalty) == (1, 4, 0.0)
    assert cli.trainer.accumulate_grad_batches * data.micro_batch_prompts == data.prompts_per_rollout, "one minibatch"
    said, default = read("algorithm/ppo.yaml"), inspect.signature(PPO).parameters
    for name in (
        "beta",
        "missing_eos",
        "centre",
        "whiten_rewards",
        "whiten_advantages",
        "value_clip",
        "value_weight",
        "entropy",
        "dropout",
    ):
        assert default[name].default == said[f"model.init_args.{name}"], name


def test_ppo_takes_another_critic_and_macro_actions() -> None:
    key = "model.init_args"
    chosen = {
        f"{key}.critic": "ValueModel",
        f"{key}.critic.init_args.path": "runs/quickstart/policy",
        f"{key}.critic_settings": "{lr: 0.5}",
    }
    chosen |= {f"{key}.credit": "MacroGAE", f"{key}.credit.init_args.length": "3", f"{key}.kl_target": "KLTarget"}
    chosen |= {f"{key}.kl_target.init_args.nats": "2.0"}
    cli = build("algorithm/ppo.yaml", LOCAL, FUNCTION, **chosen)
    ppo = cli.model
    assert isinstance(ppo, PPO)
    assert (ppo.credit, ppo.kl_target) == (MacroGAE(length=3), KLTarget(2.0))
    assert isinstance(ppo.critic, ValueModel)
    assert ppo.critic.path == "runs/quickstart/policy"
    assert [group["lr"] for group in optimizer_of(cli)[0].param_groups] == [3e-6, 0.5]


def test_rounds_of_iterative_dpo() -> None:
    cli = build("algorithm/iterative_dpo.yaml", LOCAL, FUNCTION)
    dpo, data = cli.model, cli.datamodule
    assert isinstance(dpo, DPO)
    assert (dpo.pairing, dpo.anchor, dpo.reference_weights) == (BestVersusWorst(), Initial(), None)
    assert isinstance(data, OnlineDataModule)
    assert (data.responses_per_prompt, data.inner_epochs) == (8, 2)
    assert data.micro_batch_prompts * cli.trainer.accumulate_grad_batches == 128


@pytest.mark.parametrize(("name", "option", "value"), [("PreviousRound", "rollouts", 3), ("MovingAverage", "decay", 0.9)])
def test_an_anchor_is_chosen_by_name(name: str, option: str, value: float) -> None:
    key = "model.init_args.anchor"
    cli = build("algorithm/iterative_dpo.yaml", LOCAL, FUNCTION, **{key: name, f"{key}.init_args.{option}": str(value)})
    assert cli.model.anchor == {"PreviousRound": PreviousRound, "MovingAverage": MovingAverage}[name](value)
    assert any(found.startswith("reference_weights.model.") for found in cli.model.state_dict())


@pytest.mark.parametrize(
    ("file", "part", "options", "expected"),
    [
        ("dar", "baseline", {}, BatchMean()),
        ("dpo", "link", {"alpha": 0.3}, AlphaDivergence(0.3)),
        ("iterative_sft", "select", {"threshold": 0.25}, Above(0.25)),
        ("grpo", "normaliser", {"tokens": 64.0}, SumOver(64.0)),
        ("grpo", "surrogate", {"low": 0.1}, Clip(low=0.1)),
        ("reinforce_pp", "baseline", {}, BatchMean()),
    ],
)
def test_a_part_that_is_called_may_be_an_object(file: str, part: str, options: dict[str, float], expected: Any) -> None:
    key = f"model.init_args.{part}"
    chosen = {key: f"lit_align.algorithms.{type(expected).__name__}"} | {f"{key}.init_args.{k}": str(v) for k, v in options.items()}
    assert getattr(build(f"algorithm/{file}.yaml", LOCAL, FUNCTION, **chosen).model, part) == expected


def test_sft_imitates_files() -> None:
    cli = build("algorithm/sft.yaml", "quickstart_warmup.yaml")
    assert isinstance(cli.model, SFT)
    data = cli.datamodule
    assert isinstance(data, DemonstrationDataModule)
    assert (data.prompts_per_rollout, data.micro_batch_prompts, data.max_response_tokens) == (800, 32, 80)
    assert data.prompts[0].reference
    steps = cli.trainer.max_epochs * data.prompts_per_rollout // data.micro_batch_prompts
    assert optimizer_of(cli)[1].total_steps == steps, "the schedule ends with the run"


OFFLINE = ("experiment/local_model.yaml", "data/pairs.yaml")


def test_offline_dpo_is_the_published_setting() -> None:
    cli = build("algorithm/dpo_offline.yaml", *OFFLINE)
    dpo, data = cli.model, cli.datamodule
    assert isinstance(dpo, DPO)
    assert (dpo.beta, dpo.label_smoothing, dpo.nll, dpo.policy.temperature) == (0.1, 0.0, 0.0, 1.0)
    optimizer, schedule = optimizer_of(cli)
    assert type(optimizer) is torch.optim.RMSprop
    (group,) = optimizer.param_groups
    rates = []
    for _ in range(152):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    assert rates[0] == pytest.approx(1e-6 / 150, rel=1e-3)
    assert rates[75] == pytest.approx(0.5e-6, rel=1e-2)
    assert rates[150:] == pytest.approx([1e-6, 1e-6], rel=1e-9)
    assert isinstance(data, PreferenceDataModule)
    assert data.micro_batch_prompts * cli.trainer.accumulate_grad_batches == data.prompts_per_rollout == 64, "one step per rollout"


@pytest.mark.parametrize(
    ("name", "mixture"), [("sail_dp", (0.4, 0.0, 0.0, 0.6)), ("sail_pp", (0.0, 0.3, 0.0, 0.7)), ("sail_pr", (0.0, 0.0, 0.3, 0.7))]
)
def test_designs_of_sail_are_published_mixtures(name: str, mixture: tuple[float, ...]) -> None:
    cli = build_composed(f"algorithm/{name}.yaml")
    sail, data = cli.model, cli.datamodule
    assert isinstance(sail, SAIL)
    assert (sail.beta, sail.label_weights, sail.reference_kl) == (0.1, {Source.RELABEL: 0.2, Source.FRESH_SELF: 0.2}, 0.0)
    assert sail.answer_weights == {Source.FRESH_SELF: 0.2, Source.FRESH_ANNOTATED: 0.3}
    assert isinstance(data, MixedDataModule)
    routes = data.routes
    assert (routes.relabel, routes.fresh_self, routes.fresh_annotated, routes.fixed) == pytest.approx(mixture)
    assert (data.fixed_passes, data.responses_per_prompt) == (5, 2)
    assert data.micro_batch_prompts * cli.trainer.accumulate_grad_batches == data.prompts_per_rollout, "one step per rollout"
    optimizer, schedule = optimizer_of(cli)
    assert type(optimizer) is torch.optim.RMSprop
    assert (schedule.start_factor, schedule.total_iters, optimizer.defaults["lr"]) == (0.00667, 150, 1e-5)


def test_sail_revkl_is_sail_pr_with_the_published_price() -> None:
    cli, plain = build_composed("algorithm/sail_pr_revkl.yaml"), build_composed("algorithm/sail_pr.yaml")
    sail, data = cli.model, cli.datamodule
    assert isinstance(sail, SAIL)
    assert (sail.beta, sail.reference_kl, sail.needs.kl) == (0.1, 1e-3, "reference_policy")
    assert (sail.answer_weights, sail.label_weights) == (plain.model.answer_weights, plain.model.label_weights)
    assert isinstance(data, MixedDataModule)
    assert (data.routes, data.responses_per_prompt) == (plain.datamodule.routes, plain.datamodule.responses_per_prompt)
    assert data.micro_batch_prompts * cli.trainer.accumulate_grad_batches == data.prompts_per_rollout, "one step per rollout"
    optimizer, schedule = optimizer_of(cli)
    assert type(optimizer) is torch.optim.RMSprop
    assert (data.fixed_passes, cli.trainer.max_epochs, schedule.total_iters) == (None, 100, 10)


@pytest.mark.parametrize("name", ["dpo", "ipo", "slic", "simpo", "orpo", "iterative_sft", "iterative_dpo", "sft"])
def test_a_file_of_pairs_makes_an_algorithm_offline(name: str) -> None:
    online, cli = build_composed(f"algorithm/{name}.yaml"), build(f"algorithm/{name}.yaml", *OFFLINE)
    data = cli.datamodule
    assert isinstance(data, PreferenceDataModule)
    assert type(cli.model) is type(online.model)
    assert data.prompts_per_rollout == online.datamodule.prompts_per_rollout
    assert [answer.score for answer in next(iter(data.prompts)).answers] == [1.0, 0.0]


ONLINE = [file for file in FILES if not file.startswith("algorithm/") and file not in ("quickstart_warmup.yaml", MIXED, *OFFLINE)]


@pytest.mark.parametrize("experiment", [file for file in ONLINE if "model.init_args.optimizer.class_path" in read(file)])
@pytest.mark.parametrize("algorithm", ["algorithm/dar.yaml", ANCHORED])
def test_an_experiments_optimizer_is_its_own(algorithm: str, experiment: str) -> None:
    """Its class changes from Adafactor to AdamW, or not: nothing of what the algorithm's file said of the other stays."""
    optimizer, schedule = optimizer_of(build(algorithm, experiment, **STAND_INS.get(experiment, {})))
    said = yaml.safe_load((CONFIGS / experiment).read_text(encoding="utf-8"))["model"]["init_args"]
    assert said["optimizer"]["class_path"] == "torch.optim.AdamW"
    alone = torch.optim.AdamW([torch.zeros(1)], **said["optimizer"]["init_args"])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.defaults == alone.defaults
    expected = said["lr_schedule"] and torch.optim.lr_scheduler.LinearLR(alone, **said["lr_schedule"]["init_args"])
    assert type(schedule) is type(expected)
    if expected is not None:
        assert (schedule.start_factor, schedule.end_factor, schedule.total_iters) == (
            expected.start_factor,
            expected.end_factor,
            expected.total_iters,
        )


@pytest.mark.parametrize("experiment", ["quickstart.yaml", "experiment/stories.yaml"])
def test_the_judge_of_an_experiment_is_not_what_trains(experiment: str) -> None:
    cli = build(ANCHORED, experiment)
    (evaluation,) = (c for c in cli.trainer.callbacks if isinstance(c, callbacks.JudgeEvaluation))
    data, judge = cli.datamodule, evaluation.judge
    assert isinstance(data, OnlineDataModule)
    assert isinstance(data.annotator, FunctionAnnotator)
    assert isinstance(judge, FunctionAnnotator)
    trains, judges = data.annotator.function, judge.function
    assert (trains, judges) == (proxy_score, gold_score) or (type(trains), type(judges)) == (Proxy, Gold)
    assert isinstance(data.prompts, JsonlPrompts)
    assert isinstance(evaluation.prompts, JsonlPrompts)
    assert data.prompts.where != evaluation.prompts.where
    assert evaluation.every_n_rollouts == 10
    assert cli.trainer.max_epochs % 10 == 0, "the last rollout is judged"


def test_the_quickstart_is_what_it_says() -> None:
    cli = build(ANCHORED, "quickstart.yaml")
    data = cli.datamodule
    assert isinstance(data, OnlineDataModule)
    assert isinstance(data.sampler, CacheSampler)
    assert (cli.trainer.max_epochs, cli.trainer.gradient_clip_val, cli.trainer.accumulate_grad_batches) == (40, 1.0, 1)
    assert (data.prompts_per_rollout, data.micro_batch_prompts, data.sampler.max_new_tokens) == (32, 32, 64)
    assert isinstance(cli.model, DAR)
    assert (cli.model.alpha, cli.model.scale) == (0.125, ReferenceStd()), "the algorithm's file is not overruled"


def test_a_pretrained_model_is_trained_through_an_adapter() -> None:
    cli = build_composed("experiment/qwen_lora.yaml")
    policy, data = cli.model.policy, cli.datamodule
    assert isinstance(policy, CausalPolicy)
    assert policy.lora == LoRA(rank=16, alpha=32.0, dropout=0.0, targets="all-linear")
    assert (policy.dtype, policy.attn_implementation) == ("bfloat16", "sdpa")
    assert policy.model.is_activation_checkpointing
    assert {p.dtype for p in policy.parameters() if p.requires_grad} == {torch.float32}
    assert isinstance(data, OnlineDataModule)
    assert cli.trainer.precision == "bf16-mixed"
    assert cli.trainer.accumulate_grad_batches * data.micro_batch_prompts == data.prompts_per_rollout


def test_files_of_local_data() -> None:
    data = build(ANCHORED, LOCAL, "data/jsonl.yaml", FUNCTION).datamodule
    assert isinstance(data, OnlineDataModule)
    assert isinstance(data.eval_prompts, JsonlPrompts)
    assert (data.prompts.where, data.eval_prompts.where) == ("prompts.jsonl", "eval_prompts.jsonl")  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(data.annotator, FunctionAnnotator)
    assert data.annotator.function.__module__ == "my_annotator"
    assert data.sampler.max_new_tokens == 128


def test_files_of_several_datasets_and_of_a_stream() -> None:
    mixed = build_composed("data/mixed.yaml").datamodule.prompts
    assert isinstance(mixed, MixedPrompts)
    assert mixed.shares == {"prompts": 0.75, "more_prompts": 0.25}
    streamed = build_composed("data/streaming.yaml").datamodule.prompts
    assert isinstance(streamed, DatasetStream)
    assert (streamed.shuffle_buffer, next(iter(streamed)).content) == (1000, PROMPTS[0])


def test_the_file_of_vllm_names_an_engine_that_is_not_started() -> None:
    sampler = build_composed("sampler/vllm.yaml").datamodule.sampler
    assert isinstance(sampler, EngineSampler)
    assert isinstance(sampler.engine, VLLMEngine)
    assert (sampler.engine.path, sampler.engine.version, sampler.max_staleness) == ("my-model", None, 0)


def test_the_file_of_the_bfloat16_copy_changes_the_sampler_alone() -> None:
    sampler = build(ANCHORED, "quickstart.yaml", "sampler/bf16.yaml").datamodule.sampler
    assert isinstance(sampler, Bfloat16Sampler)
    assert (sampler.max_new_tokens, sampler.stop, sampler.max_factor, sampler.max_staleness) == (64, (), 2.0, 0)


def test_the_callbacks_file_shows_a_run() -> None:
    made = build(ANCHORED, LOCAL, FUNCTION, "callbacks/default.yaml").trainer.callbacks
    others = {callbacks.JudgeEvaluation, callbacks.ReliabilityPlot}  # who judges is the user's choice; of reward models
    ours = {getattr(callbacks, name) for name in callbacks.__all__} - others
    for kind in (*ours, ModelCheckpoint):
        assert sum(isinstance(callback, kind) for callback in made) == 1, kind


@pytest.mark.parametrize(("file", "ranks", "backend"), [("strategy/ddp.yaml", 1, None), ("strategy/ddp_cpu.yaml", 2, "gloo")])
def test_strategies(file: str, ranks: int, backend: str | None) -> None:
    trainer = build_composed(file).trainer
    assert type(trainer.strategy) is DDPStrategy
    assert (trainer.world_size, trainer.strategy._process_group_backend) == (ranks, backend)
    assert trainer.precision == ("bf16-mixed" if file == "strategy/ddp.yaml" else "32-true")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_is_built_with_its_stage(stage: int) -> None:
    trainer = build_composed(f"strategy/deepspeed_zero{stage}.yaml").trainer
    assert isinstance(trainer.strategy, DeepSpeedStrategy)
    assert isinstance(trainer.strategy.config, dict)
    assert trainer.strategy.config["zero_optimization"]["stage"] == stage
    assert trainer.precision == "bf16-mixed"


def test_fsdp2_shards_over_all_devices_and_writes_one_file() -> None:
    trainer = build_composed("strategy/fsdp2.yaml").trainer
    assert isinstance(trainer.strategy, ModelParallelStrategy)
    assert trainer.strategy._data_parallel_size == trainer.num_devices == 2
    assert trainer.strategy._tensor_parallel_size == 1
    assert trainer.strategy._save_distributed_checkpoint is False
    assert trainer.precision == "bf16-mixed"


def test_the_trainer_is_set_for_online_runs() -> None:
    cli = build(ANCHORED, LOCAL, FUNCTION)
    trainer = cli.trainer
    assert trainer.reload_dataloaders_every_n_epochs == 1
    assert trainer._accelerator_connector.use_distributed_sampler is False
    assert (trainer.num_sanity_val_steps, trainer.log_every_n_steps, trainer.check_val_every_n_epoch) == (0, 1, 10)
    assert trainer.max_epochs == 100
    assert trainer.default_root_dir == "runs/unnamed"
    assert isinstance(trainer.logger, TensorBoardLogger)
    assert trainer.logger.log_dir == "runs/unnamed/"
    checkpoint = trainer.checkpoint_callback
    assert isinstance(checkpoint, ModelCheckpoint)
    assert Path(checkpoint.dirpath or "") == Path("runs/unnamed/checkpoints").resolve()
    assert checkpoint._every_n_epochs == 10
    assert checkpoint.save_last is True


def test_a_logger_of_the_file_is_kept_and_writes_into_the_runs_folder() -> None:
    cli = build(ANCHORED, "experiment/stories.yaml")
    assert isinstance(cli.trainer.logger, CSVLogger)
    assert cli.trainer.logger.log_dir == "runs/unnamed/csv/version_0"


@pytest.mark.parametrize("seed", [0, 5])
def test_one_seed_for_everything(seed: int) -> None:
    cli = build(ANCHORED, LOCAL, FUNCTION, seed_everything=str(seed))
    assert cli.datamodule.seed == seed
    assert torch.initial_seed() == seed
