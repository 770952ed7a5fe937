"""What the documentation says is there: links, files, classes, commands, examples, and every metric with its x-axis."""

import json
import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import LlamaForCausalLM

from callbacks import Histograms, JudgeEvaluation, KLMonitor, SampleTable, Throughput, WeightClipping
from lit_align import __version__
from lit_align.algorithms import SFT
from lit_align.annotators import FunctionAnnotator, LocalLM, RewardModelAnnotator
from lit_align.cli import main
from lit_align.cli.agree_options import agree_parser
from lit_align.cli.agree_table import WORDS
from lit_align.cli.parts import read_parts
from lit_align.data import DemonstrationDataModule, JsonlPrompts, ListPrompts
from lit_align.models import CausalPolicy
from tests.annotators.worlds import llama_config, make_tokenizer, rollouts
from tests.tiny import PROMPTS, adamw, make_dar, make_data, make_trainer, vowels, write_prompts, write_tiny

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
REFUSED = {"lit_align/callbacks/"}  # named to say why it is not there
MISTAKEN = {"configs/algorithm/darr.yaml", "lit_align.generation.CacheSampeler"}  # examples of what a user may type
FENCE = re.compile(r"^```(\w*)[ ]?(\S*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())


class Block(NamedTuple):
    """A fenced block: its language, the file that it is, or an empty name, and its text."""

    language: str
    file: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The file's name follows the language, or is a comment in the first line."""
    for language, name, text in FENCE.findall(page.read_text(encoding="utf-8")):
        comment = re.match(r"# (\w+\.\w+)\n", text)
        yield Block(language, name or (comment.group(1) if comment else ""), text)


def commands(page: Path) -> list[list[str]]:
    """Every ``lit-align`` command of a page, without its first word."""
    lines = "\n".join(block.text for block in blocks(page) if block.language == "sh").replace("\\\n", " ").splitlines()
    return [line.split("  #")[0].split()[1:] for line in lines if line.startswith("lit-align ")]


def slug(heading: str) -> str:
    """The anchor that a heading gets."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pages
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)", page.read_text(encoding="utf-8")):
        found = page.parent / target if target else page
        assert found.exists(), f"{page.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{page.name} links to {target}#{anchor}"


@pages
def test_paths_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(r"(?<![\w/.\-])(?:configs|tests|docs|lit_align|callbacks|benchmarks|scripts)/[\w./\-]*[\w/]", text):
        assert (ROOT / path).exists() or path in REFUSED | MISTAKEN, f"{page.name} names {path}"


@pages
def test_tests_that_are_named_exist(page: Path) -> None:
    for path, name in re.findall(r"(tests/[\w/]+\.py)::(\w+)", page.read_text(encoding="utf-8")):
        assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name} names {path}::{name}"


@pages
def test_classes_that_are_named_can_be_imported(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.])(?:lit_align|callbacks)[.\w]*\.[A-Z]\w+", page.read_text(encoding="utf-8")):
        module, _, attribute = name.rpartition(".")
        assert name in MISTAKEN or attribute in vars(import_module(module)), f"{page.name} names {name}"


def test_the_changelog_has_this_version() -> None:
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


# Commands and examples


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a reader has after README's first steps, in the current folder: a model, the configs, and the files of README."""
    write_tiny(tmp_path / "my-model", context=512)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    write_files(tmp_path, README)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    for name in (
        "my_annotator",
        "my_api",
        "my_algorithm",
        "test_my_algorithm",
        "my_preference",
        "my_surrogate",
        "my_judge",
        "my_callback",
        "my_anchor",
        "my_engine",
        "my_reader",
    ):
        monkeypatch.delitem(__import__("sys").modules, name, raising=False)
    return tmp_path


def write_files(folder: Path, page: Path) -> None:
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def run_commands(page: Path) -> None:
    """All of them, in order, for a few rollouts; those that start further processes, need real data or the quickstart's folder are only
    parsed."""
    for command in commands(page):
        if any("strategy/" in argument or "$LIT_ALIGN_DATA" in argument or "runs/quickstart" in argument for argument in command):
            parse(command)
            continue
        if command[0] in ("export", "judge", "mtbench", "plot"):
            main(command)
            continue
        arguments = [*command, "--trainer.accelerator=cpu"]
        if any(argument.endswith("local.yaml") for argument in command):
            arguments.append("--data.init_args.sampler.init_args.max_new_tokens=16")
        if command[0] == "fit":
            longer = any(argument.startswith("--trainer.max_epochs") for argument in command)
            arguments += [f"--trainer.max_epochs={3 if longer else 2}", "--trainer.enable_model_summary=false"]
        main(arguments)


def parse(command: list[str]) -> None:
    """The command's files exist and fit together; nothing is built."""
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--help" if command[0] in ("agree", "judge", "mtbench", "quickstart") else "--print_config"])
    assert exit_.value.code == 0, command


def plotted(folder: Path) -> EventAccumulator:
    """What TensorBoard would show of a run."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0, "tensors": 0})
    events.Reload()
    return events


def test_what_readme_tells_to_run_runs(folder: Path) -> None:
    run_commands(README)
    run = folder / "runs" / "first"
    assert len((run / "predictions.jsonl").read_text(encoding="utf-8").splitlines()) == len(JsonlPrompts("eval_prompts.jsonl"))
    assert [event.step for event in plotted(run).Scalars("reward/mean")] == [0, 1, 2], "two rollouts, and one more after the resume"
    (listed,) = (block.text for block in blocks(README) if block.text.startswith("runs/first/\n"))
    names = {re.sub(r"^events.*", "events.out.tfevents", path.name) + ("/" if path.is_dir() else "") for path in run.iterdir()}
    assert names == {line.split()[0] for line in listed.splitlines()[1:]}

    assert_differ(CausalPolicy("my-aligned-model"), CausalPolicy("my-model"))


def assert_differ(one: CausalPolicy, other: CausalPolicy) -> None:
    other_state = other.state_dict()
    assert any(not torch.equal(value, other_state[name]) for name, value in one.state_dict().items())


def test_what_the_page_on_sft_tells_to_run_runs(folder: Path) -> None:
    page = ROOT / "docs" / "algorithms" / "sft.md"
    write_files(folder, page)
    run_commands(page)
    assert len(plotted(folder / "runs" / "sft").Scalars("train/loss")) == 2


def test_what_the_page_on_reward_models_tells_to_run_runs(folder: Path) -> None:
    page = ROOT / "docs" / "algorithms" / "reward_model.md"
    write_files(folder, page)
    run_commands(page)
    assert plotted(folder / "runs" / "reward").Scalars("pairs/accuracy")
    answers = rollouts([["yes", "no"]], ["a"])
    assert RewardModelAnnotator("my-reward-model").annotate(answers).valid.all()


def test_what_the_page_on_anchors_tells_to_run_runs(folder: Path) -> None:
    page = ROOT / "docs" / "algorithms" / "anchors.md"
    write_files(folder, page)
    run_commands(page)
    assert all(len(plotted(folder / "runs" / name).Scalars("train/loss")) == 2 for name in ("rounds", "mean"))


def test_what_the_page_on_engines_tells_to_run_runs(folder: Path) -> None:
    page = ROOT / "docs" / "engines.md"
    write_files(folder, page)
    vllm, own = commands(page)
    parse(vllm)
    main([*own, "--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.enable_model_summary=false"])
    found = plotted(folder / "runs" / "engine")
    assert [0 < event.value < 0.1 for event in found.Scalars("engine/logp_difference")] == [True, True], "bfloat16 is not float32"
    assert [event.value for event in found.Scalars("engine/staleness")] == [0, 0]


def test_what_the_page_on_sampling_tells_to_run_runs(folder: Path) -> None:
    run_commands(ROOT / "docs" / "sampling.md")
    found = plotted(folder / "runs" / "bf16")
    assert [0 < event.value < 0.1 for event in found.Scalars("engine/logp_difference")] == [True, True]


def test_the_page_on_engines_has_every_metric(folder: Path) -> None:
    source = (ROOT / "lit_align" / "algorithms" / "mismatch.py").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "engines.md").read_text(encoding="utf-8")
    assert set(re.findall(r'"(engine/\w+)":', source)) == set(re.findall(r"^\| `(engine/\w+)` \|", text, re.MULTILINE)) != set()


def test_what_the_page_on_trust_tells_to_run_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def likes_the_last(judge: LocalLM, prompts: Sequence[Any], options: Sequence[str]) -> torch.Tensor:
        return torch.arange(1.0, len(options) + 1).log_softmax(-1).expand(len(prompts), -1)

    monkeypatch.setattr(LocalLM, "option_logps", likes_the_last)
    write_tiny(folder / "my-judge")
    page = ROOT / "docs" / "trust.md"
    write_files(folder, page)
    for command in commands(page):
        if not any("$LIT_ALIGN_DATA" in argument for argument in command):  # those are run on the real data
            main(command)
    report = json.loads(Path("agreement.json").read_text(encoding="utf-8"))["report"]
    assert report["pairs"] == 4
    assert report["measures"]["first_place"]["value"] == 0
    assert Path("agreement.png").is_file()
    assert "Pair by pair, on 3 pairs of 3 prompts" in capsys.readouterr().out


def test_the_page_on_trust_has_every_measure_and_option() -> None:
    text = (ROOT / "docs" / "trust.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| ([^|`]+) \| `(\w+)` \|", text, re.MULTILINE))
    assert {name: words for words, name in listed.items()} == WORDS
    offered = {option for action in agree_parser(add_help=False)._actions for option in action.option_strings}
    assert offered - set(re.findall(r"`(--\w+)", text)) == {"--seed"}


def test_what_the_page_on_evaluation_tells_to_run_runs(folder: Path) -> None:
    write_grader(folder / "my-judge")
    page = ROOT / "docs" / "evaluation.md"
    write_files(folder, page)
    run_commands(page)
    assert read_parts(["gold.yaml"]).judge.identity == "lit_align.quickstart.rules.gold_score"
    found = {name: json.loads((folder / "runs" / name / "report.json").read_text(encoding="utf-8")) for name in ("judged", "judged-again")}
    assert [said["comparisons"][0]["win_rate"]["n"] for said in found.values()] == [12, 12]
    assert [said["trained_for_judge"] for said in found.values()] == [[], ["runs/judged/samples/runs-first.jsonl"]]
    three = json.loads((folder / "runs" / "three" / "report.json").read_text(encoding="utf-8"))
    assert len(three["ratings"]) == 3
    grades = [json.loads((folder / "runs" / name / "report.json").read_text(encoding="utf-8")) for name in ("graded", "graded-again")]
    assert [*grades[0]["models"].values()] == [*grades[1]["models"].values()]
    assert grades[0]["models"]["my-model"]["all"]["n"] == 4
    points = json.loads((folder / "runs" / "reward_kl.json").read_text(encoding="utf-8"))
    assert points["runs"]["runs/first"]["rollouts"] == [0, 1]


def write_grader(folder: Path) -> None:
    """A judge that gives one-digit grades, the same ones whatever it reads."""
    tokenizer = make_tokenizer()
    torch.manual_seed(0)
    model = LlamaForCausalLM(llama_config(max_position_embeddings=2048, tie_word_embeddings=False))
    digits = tokenizer.convert_tokens_to_ids(list("123456789"))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight", "lm_head.weight")):
                weight.zero_()
        model.get_input_embeddings().weight[:, 0] = 10.0  # what every token says
        model.get_output_embeddings().weight[digits, 0] = 4.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def test_the_commands_of_the_log_can_be_parsed(folder: Path) -> None:
    found = commands(ROOT / "docs" / "log.md")
    assert found
    for command in found:
        parse(command)


def test_the_examples_of_add_run(folder: Path) -> None:
    page = ROOT / "docs" / "add.md"
    write_files(folder, page)
    run_commands(page)
    import_module("test_my_algorithm").test_of_two_it_is_dpo_with_a_soft_label()
    for name in ("listwise", "hinge"):
        loss = plotted(folder / "runs" / name).Scalars("train/loss")
        assert len(loss) == 2
        assert all(event.value > 0 for event in loss)
    assert len(plotted(folder / "runs" / "dual").Scalars("ratio/clipped_fraction")) == 2
    assert all(event.value < 0 for event in plotted(folder / "runs" / "likely").Scalars("reward/mean")), "log-probs are negative"
    assert len(plotted(folder / "runs" / "watched").Scalars("response/duplicates")) == 2


LENGTHS = {"my_algorithm.py": 40, "my_preference.py": 15, "my_surrogate.py": 25, "my_judge.py": 40, "my_callback.py": 30}


def test_the_examples_of_add_are_as_short_as_it_says() -> None:
    page = ROOT / "docs" / "add.md"
    lines = {block.file: sum(bool(line.strip()) for line in block.text.splitlines()[1:]) for block in blocks(page)}  # without the name
    assert {name: lines[name] for name in LENGTHS if lines[name] > LENGTHS[name]} == {}
    promised = re.findall(r"^## Add an? .* in (\d+) lines$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert list(map(int, promised)) == list(LENGTHS.values())


def test_the_shorter_examples_of_add_are_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    write_files(folder, ROOT / "docs" / "add.md")
    hinge = import_module("my_preference").SquaredHinge.pair_loss
    losses = hinge(None, torch.tensor([0.0, 5.0, 20.0, -10.0, 5.0]), torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]))
    torch.testing.assert_close(losses, torch.tensor([1.0, 0.25, 0.0, 4.0, 2.25]))
    ratios, advantages = torch.tensor([1.5, 1.5, 5.0, 1.5]).log(), torch.tensor([1.0, -1.0, -1.0, -1.0])
    losses, clipped = import_module("my_surrogate").DualClip(2.0)(ratios, advantages, torch.ones(4).bool())
    torch.testing.assert_close(losses, torch.tensor([-1.2, 1.5, 2.0, 1.5]))
    assert clipped.tolist() == [True, False, True, False]


@pages
def test_every_json_block_is_json(page: Path) -> None:
    for block in blocks(page):
        if block.language == "json":
            assert all(json.loads(line) for line in block.text.splitlines())


# The table of metrics

AXES = {
    "rollout": [0, 1, 2],
    "rollouts trained on": [0, 1, 2, 3],
    "optimizer step": [0, 1, 2, 3, 4, 5],
    "optimizer step of the evaluation": [1, 3, 5],
}


def documented() -> dict[str, str]:
    """Metric to x-axis, as README's table has them."""
    found = {}
    for line in README.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `") and len(cells) == 3 and "/" in cells[0]:
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[2])
    return found


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[int]]:
    """Scalar to its x values: three rollouts of two optimizer steps each, with every callback and an evaluation after each."""
    root = tmp_path_factory.mktemp("metrics")
    model = write_tiny(root / "model")
    held_out = ListPrompts(PROMPTS[:4], name="held out")
    judge = JudgeEvaluation(FunctionAnnotator(vowels), held_out, every_n_rollouts=1)
    online = make_data(eval_prompts=held_out, eval_annotator=FunctionAnnotator(vowels))
    options: dict[str, Any] = {"max_epochs": 3, "check_val_every_n_epoch": 1}
    board = TensorBoardLogger(str(root), name="online", version="")
    watching = [KLMonitor(), WeightClipping(), Histograms(), SampleTable(), Throughput(), judge]
    make_trainer(root, logger=board, callbacks=watching, **options).fit(make_dar(model), online)

    file = Path(write_prompts(root / "answers.jsonl"))
    rows = [json.loads(line) | {"answer": "abc"} for line in file.read_text(encoding="utf-8").splitlines()]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    answers = JsonlPrompts(str(file), reference_field="answer")
    data = DemonstrationDataModule(answers, answers, prompts_per_rollout=8, micro_batch_prompts=4, max_response_tokens=8)
    board = TensorBoardLogger(str(root), name="sft", version="")
    make_trainer(root, logger=board, **options).fit(SFT(CausalPolicy(model), optimizer=adamw()), data)

    found: dict[str, list[int]] = {}
    for name in ("sft", "online"):
        events = plotted(root / name)
        found |= {tag: [event.step for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        for tag in events.Tags()["histograms"]:
            found[tag] = [event.step for event in events.Histograms(tag)]
        for tag in events.Tags()["tensors"]:
            found[tag.removesuffix("/text_summary")] = [event.step for event in events.Tensors(tag)]
    return found


def test_readme_has_every_metric_and_no_other(logged: dict[str, list[int]]) -> None:
    assert set(documented()) == {name for name in logged if "/" in name}


def test_readme_has_their_x_axes(logged: dict[str, list[int]]) -> None:
    wrong = {name: axis for name, axis in documented().items() if logged[name] != AXES[axis]}
    assert not wrong, {name: (axis, logged[name]) for name, axis in wrong.items()}


def test_the_checks_find_something() -> None:
    assert len(documented()) > 20
    assert len(commands(README)) > 5
    assert sum(bool(block.file) for page in (README, ROOT / "docs" / "add.md") for block in blocks(page)) >= 8
