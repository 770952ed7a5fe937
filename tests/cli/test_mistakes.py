"""A mistake in a setting is one message: the key, the nearest name, the place."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import lit_align.cli.trainer
from lit_align.cli import main
from lit_align.cli.mistakes import explained
from tests.cli.shipped import CONFIGS, FILES, OWN, ROOT, Damage, context, damages

Refused = Callable[..., str]


@pytest.fixture
def refused(world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Refused:
    """What a mistake in the arguments of ``fit`` prints."""
    monkeypatch.setattr("sys.path", [str(ROOT), *sys.path])

    def message(*arguments: str, command: str = "fit") -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main([command, *arguments])
        shown = capsys.readouterr()
        assert exit_.value.code == 2
        assert "Traceback" not in shown.err
        assert "usage:" not in shown.err
        assert len(shown.err.splitlines()) < 12
        assert shown.err.startswith("lit-align: ")
        return shown.err

    return message


def check_damage(message: str, damage: Damage, file: str) -> None:
    """The key or class is named, with its place and what it should be."""
    assert damage.wrong in message
    assert f"Did you mean {damage.right!r}?" in message
    assert f"{file}, line {damage.line})" in message


@pytest.fixture
def parser(refused: Refused, monkeypatch: pytest.MonkeyPatch) -> object:
    """That of ``fit``."""
    seen = []
    with monkeypatch.context() as patch:
        patch.setattr(lit_align.cli.trainer, "explained", lambda *given: seen.append(given[0]) or explained(*given))
        refused(*OWN, "--rn=x")
    return seen[0]


@pytest.mark.parametrize("file", FILES)
def test_every_damaged_letter_of_every_shipped_file_is_found(file: str, parser: object, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.yaml"
    found = list(damages(file))
    assert len(found) > 3
    for damage in found:
        damaged.write_text(damage.text, encoding="utf-8")
        arguments = [f"--config={path}" for path in [*context(file), str(damaged)]]
        message = str(explained(parser, arguments, "the parser's complaint"))  # pyright: ignore[reportArgumentType]
        check_damage(message, damage, str(damaged))
        assert len(message.splitlines()) == 1  # and nothing else is wrong with the file


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_the_parser_too_stumbles_over_every_damaged_letter(file: str, refused: Refused, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.yaml"
    for damage in damages(file):
        damaged.write_text(damage.text, encoding="utf-8")
        check_damage(refused(*(f"--config={path}" for path in [*context(file), str(damaged)])), damage, str(damaged))


@pytest.mark.parametrize("number", [0, 5, -1])
def test_some_damaged_letters_through_the_front_door(number: int, refused: Refused, tmp_path: Path) -> None:
    damage = list(damages("experiment/local.yaml"))[number]
    damaged = tmp_path / "damaged.yaml"
    damaged.write_text(damage.text, encoding="utf-8")
    check_damage(refused(f"--config={CONFIGS / 'algorithm/dar.yaml'}", "--config", str(damaged)), damage, str(damaged))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--trainer.max_epohs=3", "Unknown key 'trainer.max_epohs' (the command line). Did you mean 'max_epochs'?"),
        ("--max_epochs=3", "Unknown key 'max_epochs' (the command line). Did you mean 'trainer.max_epochs'?"),
        ("--alpha=3", "Unknown key 'alpha' (the command line). Did you mean 'model.init_args.alpha'?"),
        ("--model.bta=1", "Unknown key 'model.bta' of lit_align.algorithms.DAR (the command line). Did you mean 'beta'?"),
        ("--trainer.max_epochs=many", "trainer.max_epochs (the command line): expected int or null, got 'many'."),
        ("--model.init_args.beta=strong", "model.init_args.beta (the command line): expected float, got 'strong'."),
        ("--data.init_args.long_prompts=dorp", "expected one of drop, truncate_left, refuse, got 'dorp'. Did you mean 'drop'?"),
        ("--trainer.enable_progress_bar=flase", "got 'flase'. Did you mean 'false'?"),
        ("--trainer.precision=bf16-mixd", "got 'bf16-mixd'. Did you mean 'bf16-mixed'?"),
        ("--model.init_args.policy=CausalPolcy", "got 'CausalPolcy'. Did you mean 'CausalPolicy'?"),
        ("--model.init_args.policy.class_path=lit_aling.models.CausalPolicy", "Did you mean 'lit_align.models.CausalPolicy'?"),
        ("--model.init_args.policy.class_path=lit_align.modls.CausalPolicy", "Did you mean 'lit_align.models.CausalPolicy'?"),
        ("--model.init_args.baseline=lit_align.algorithms.leave_one_uot", "Did you mean 'lit_align.algorithms.leave_one_out'?"),
        ("--model.init_args.optimizer.init_args.lr=fast", "init_args.lr (the command line): expected float"),
        ("--data.init_args.annotator.init_args.function=your_annotator.score", "it should be your_annotator.py in the current folder"),
        ("--trainer.callbacks=KLMonitr", "Did you mean 'KLMonitor'?"),
        ("stray", "Unexpected 'stray' on the command line"),
        ("--trainer.strategy=dpd", "trainer.strategy is 'dpd'. Did you mean 'ddp'?"),
        ("--trainer.accelerator=gqu", "trainer.accelerator is 'gqu'. Did you mean 'gpu'?"),
    ],
)
def test_a_mistake_on_the_command_line(option: str, message: str, refused: Refused) -> None:
    import callbacks  # noqa: F401  (a short name is that of an imported class)

    assert message in refused(*OWN, option)


def test_names_that_a_user_chooses_are_no_mistake_but_what_is_under_them_may_be(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "routes.yaml").write_text(
        "data:\n  init_args:\n    annotator:\n      class_path: lit_align.annotators.Router\n      init_args:\n        by: kind\n"
        "        routes:\n          maths:\n            class_path: lit_align.annotators.FunctionAnnotator\n            init_args:\n"
        "              functoin: my_annotator.score\n",
        encoding="utf-8",
    )
    message = refused(*OWN, f"--config={tmp_path / 'routes.yaml'}")
    assert "'data.init_args.annotator.init_args.routes.maths.init_args.functoin' of lit_align.annotators.FunctionAnnotator" in message
    assert "Did you mean 'function'?" in message
    assert "'maths'" not in message


@pytest.mark.parametrize("key", ["data.init_args.seed", "data.seed"])
def test_a_linked_value_is_refused(key: str, refused: Refused, tmp_path: Path) -> None:
    expected = f"lit-align: {key} (the command line) is set by seed_everything: what you give it would be ignored.\n"
    assert refused(*OWN, f"--{key}=3") == expected + "Remove it, and set seed_everything: 3 (--seed_everything=3).\n"
    assert refused(*OWN, f"--{key}", "3").startswith(expected)
    (tmp_path / "linked.yaml").write_text("data:\n  init_args:\n    seed: 4\n", encoding="utf-8")
    assert "data.init_args.seed (linked.yaml, line 3) is set by seed_everything" in refused(*OWN, "--config=linked.yaml")


def test_a_file_that_is_missing_or_no_yaml(refused: Refused, world: Path) -> None:
    (world / "mine.yaml").write_text("trainer: [\n", encoding="utf-8")
    assert "There is no config file mien.yaml" in (message := refused("--config=mien.yaml"))
    assert "Did you mean 'mine.yaml'?" in message
    assert "mine.yaml, line 2: this is not YAML" in refused("--config", "mine.yaml")


def test_what_is_not_set_anywhere(refused: Refused) -> None:
    dar, local = f"--config={CONFIGS / 'algorithm/dar.yaml'}", f"--config={CONFIGS / 'experiment/local.yaml'}"
    message = refused(dar)
    assert "model (lit_align.algorithms.DAR) can't do without policy" in message
    assert "experiment/local_model.yaml" in message
    message = refused(dar, local).splitlines()
    assert message[0] == "lit-align: data (lit_align.data.OnlineDataModule) can't do without annotator, which nothing sets."
    assert message[1] == "Set data.init_args.annotator, or add a --config that does:"
    shipped = [str(path) for path in sorted((CONFIGS / "annotator").iterdir())]  # not the experiments, which set far more
    assert message[2].strip().split(", ") == shipped
    assert "arguments of a class that is not named yet" in refused(local)
    assert "It is named by a later one: change their order." in refused(local, dar)


def test_a_class_in_force_is_the_last_one_named(refused: Refused) -> None:
    sft = f"--config={CONFIGS / 'algorithm/sft.yaml'}"
    assert "Unknown key 'model.init_args.alpha' of lit_align.algorithms.SFT" in refused(*OWN[:2], sft, "--model.init_args.alpha=1")
    message = refused(*OWN[:2], "--model=SFT", "--model.init_args.optimzer=1")  # DAR's alpha in a file before is no mistake
    assert "optimzer" in message
    assert "alpha" not in message


def test_the_config_that_a_run_keeps_starts_it_again(world: Path) -> None:
    main(["fit", *OWN, "--trainer.max_epochs=1", "--run=runs/a", "--seed_everything=3"])
    main(["fit", "--config=runs/a/config.yaml", "--run=runs/b"])
    a, b = ((world / "runs" / name / "config.yaml").read_text(encoding="utf-8") for name in "ab")
    assert b == a.replace("runs/a", "runs/b")


def test_print_config_prints(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["fit", *OWN, "--print_config"])
    assert exit_.value.code == 0
    assert "max_new_tokens: 6" in capsys.readouterr().out


def test_a_whole_part_from_a_file_of_its_own(refused: Refused, world: Path) -> None:
    (world / "trainer.yaml").write_text("max_epochs: 3\nmax_stps: 4\n", encoding="utf-8")
    assert "Unknown key 'trainer.max_stps' (trainer.yaml, line 2). Did you mean 'max_steps'?" in refused(*OWN, "--trainer=trainer.yaml")
    (world / "model.yaml").write_text("init_args:\n  alpa: 3\n", encoding="utf-8")
    assert "'model.init_args.alpa' of lit_align.algorithms.DAR (model.yaml, line 2)" in refused(*OWN, "--model=model.yaml")


@pytest.mark.parametrize(
    ("source", "said"), [("def score(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("import nohting", "nohting")]
)
def test_a_module_that_cannot_be_imported(source: str, said: str, refused: Refused, world: Path) -> None:
    (world / "my_annotator.py").write_text(source, encoding="utf-8")
    message = refused(*OWN)
    assert "data.init_args.annotator.init_args.function (" in message
    assert "Importing my_annotator failed with " in message
    assert said in message


def test_settings_given_in_place_of_a_file(refused: Refused) -> None:
    assert "Unknown key 'trainer.max_epocs' (the command line)." in refused(*OWN, "--config={trainer: {max_epocs: 3}}")
