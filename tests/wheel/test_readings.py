"""Streams and mixtures in a run: resumed to the bit wherever it stopped, and told apart in the metrics."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lit_align.algorithms import SFT
from lit_align.data import DemonstrationDataModule, JsonlPrompts, JsonlStream, ListPrompts, MixedPrompts
from lit_align.models import CausalPolicy
from lit_align.types import Prompt, PromptSource, UserError
from tests.tiny import PROMPTS, adamw, make_dar, make_data, make_trainer, vowels, write_prompts
from tests.wheel.harness import Fit, Killed, Scores, differing, fit
from tests.wheel.test_resume import KillAt, Saves, SavesItsEnd, run


def stream(folder: Path, **options: Any) -> JsonlStream:
    folder.mkdir(exist_ok=True, parents=True)
    return JsonlStream(write_prompts(folder / "prompts.jsonl"), name="letters", **options)


def mixture(folder: Path, rare: float = 0.2) -> MixedPrompts:
    """Two of three prompts from a stream; "rare" comes once in five."""
    sources = [stream(folder, shuffle_buffer=5), ListPrompts(["ab", "ba"], name="pairs"), ListPrompts(["hi", "hig"], name="rare")]
    return MixedPrompts([*sources], [2, 1, rare])


SOURCES = {"stream": lambda folder: stream(folder), "shuffled": lambda folder: stream(folder, shuffle_buffer=3), "mixture": mixture}
kinds = pytest.mark.parametrize("kind", SOURCES)


@pytest.fixture(scope="module")
def saved(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Fit, Saves]]:
    found = {}
    for kind, make in SOURCES.items():
        folder = tmp_path_factory.mktemp("saved")
        saves = Saves(folder)
        found[kind] = run(folder / "run", tiny, [saves], prompts=make(folder)), saves
    return found


def read(result: Fit) -> list[list[tuple[int, int]]]:
    """Prompt and occurrence of every row of every rollout."""
    return [[(p.id, int(o)) for p, o in zip(r.prompts, r.occurrences, strict=True)] for r in result.recorder.rollouts]


@kinds
@pytest.mark.parametrize("moment", ["before-0", "after-3", "after-7"])
def test_resumed_inside_a_rollout(kind: str, moment: str, saved: dict[str, tuple[Fit, Saves]], tiny: str, root: Path) -> None:
    whole, saves = saved[kind]
    resumed = run(root, tiny, prompts=SOURCES[kind](root), ckpt_path=saves.folder / f"{moment}.ckpt")
    assert read(resumed) == read(whole)[2:]
    assert differing(whole.state, resumed.state) == []


@kinds
@pytest.mark.parametrize("number", [3, 13])
def test_resumed_from_a_failure_while_sampling(kind: str, number: int, saved: dict[str, tuple[Fit, Saves]], tiny: str, root: Path) -> None:
    """The rollout that was being made had been read; it is read again."""
    with pytest.raises(Killed):
        run(root, tiny, [SavesItsEnd(root)], annotator=Scores(KillAt(number)), prompts=SOURCES[kind](root))
    resumed = run(root, tiny, prompts=SOURCES[kind](root), ckpt_path=root / "end.ckpt")
    assert read(resumed) == read(saved[kind][0])[number // 8 :]
    assert differing(saved[kind][0].state, resumed.state) == []


@kinds
def test_a_rollout_is_what_comes_next(kind: str, saved: dict[str, tuple[Fit, Saves]]) -> None:
    rollouts = read(saved[kind][0])
    assert len(rollouts) == 3
    assert (rollouts[0] == rollouts[2]) == (kind == "stream"), "16 prompts: the third rollout is of another reading"
    assert all(len(set(rollout)) == len(rollout) for rollout in rollouts), "a prompt that comes again is another occurrence"
    if kind != "mixture":
        assert {p for p, _ in rollouts[0] + rollouts[1]} == {
            p.id for p in JsonlPrompts(str(saved[kind][1].folder / "prompts.jsonl"), name="letters")
        }


def test_the_same_trainer_reads_on(tiny: str, root: Path) -> None:
    whole = fit(root / "whole", tiny, prompts=mixture(root))
    result = fit(root / "parts", tiny, prompts=mixture(root), trainer={"max_epochs": 1})
    result.trainer.fit_loop.max_epochs = 2
    result.trainer.fit(result.module, result.data)
    assert read(result) == read(whole)


def test_another_rollout_size_waits_for_the_end_of_the_rollout(tiny: str, root: Path) -> None:
    saves = Saves(root)
    whole = fit(root / "whole", tiny, callbacks=[saves], trainer={"max_epochs": 3}, prompts=stream(root))
    whole.trainer.save_checkpoint(root / "end.ckpt")
    larger: dict[str, Any] = {"prompts": stream(root), "prompts_per_rollout": 12, "trainer": {"max_epochs": 4}}
    with pytest.raises(UserError, match=r"inside a rollout of 8 prompts, but prompts_per_rollout is 12\. Set it to 8, or resume from"):
        fit(root / "inside", tiny, ckpt_path=root / "before-1.ckpt", **larger)
    resumed = fit(root / "rest", tiny, ckpt_path=root / "end.ckpt", **larger)
    ids = [p.id for p in stream(root)]
    assert [[p for p, _ in rollout] for rollout in read(resumed)] == [(ids * 3)[24:36]]


def test_rewards_of_every_dataset(tiny: str, root: Path) -> None:
    def no_pairs(prompt: Prompt, texts: Any) -> list[float]:
        scores = vowels(prompt, texts)
        return [math.nan, *scores[1:]] if prompt.dataset == "letters" else [math.nan] * 4 if prompt.dataset == "pairs" else scores

    result = fit(root, tiny, prompts=mixture(root, rare=1.0), annotator=Scores(no_pairs))
    for rollouts, annotation, metrics in zip(result.recorder.rollouts, result.recorder.annotations, result.recorder.metrics, strict=True):
        for name in ("letters", "rare"):
            of_it = torch.tensor([prompt.dataset == name for prompt in rollouts.prompts])
            assert of_it.any()
            assert metrics[f"reward/{name}"] == pytest.approx(float(annotation.scores[of_it][annotation.valid[of_it]].mean()))
        assert metrics["reward/letters"] != metrics["reward/rare"] != metrics["reward/mean"]
        assert "reward/pairs" not in metrics, "nobody scored one of them"
    assert metrics["prompts/dropped/letters"] == 0


def test_one_dataset_has_no_metric_of_its_own(tiny: str, root: Path) -> None:
    (metrics,) = fit(root, tiny, prompts=stream(root), trainer={"max_epochs": 1}).recorder.metrics
    assert {name for name in metrics if name.startswith("reward")} == {"reward/mean", "reward/std"}
    assert (metrics["prompts/dropped"], metrics["prompts/readings"]) == (0, 0)


def held_out() -> MixedPrompts:
    return MixedPrompts([ListPrompts(PROMPTS[:4], name="one"), ListPrompts(PROMPTS[4:5], name="two")], [0, 1])


def test_held_out_rewards_of_every_dataset(tiny: str, root: Path) -> None:
    data = make_data(eval_prompts=held_out(), eval_annotator=Scores(), chunk_prompts=2)
    (found,) = make_trainer(root).validate(make_dar(tiny), data, verbose=False)
    parts = {}
    for name, source in held_out().sources.items():
        (alone,) = make_trainer(root).validate(make_dar(tiny), make_data(eval_prompts=source, eval_annotator=Scores()), verbose=False)
        parts[name] = alone["val/reward"]
        assert found[f"val/reward/{name}"] == pytest.approx(alone["val/reward"])
    assert parts["one"] != parts["two"]
    assert found["val/reward"] == pytest.approx(0.8 * parts["one"] + 0.2 * parts["two"])


@pytest.mark.parametrize("source", [stream, mixture])
def test_an_endless_evaluation_is_refused_before_the_run(source: Any, tiny: str, root: Path) -> None:
    with pytest.raises(UserError, match="The stream 'letters' can't be an evaluation set"):
        fit(root, tiny, eval_prompts=source(root))


def test_a_bounded_stream_is_an_evaluation_set(tiny: str, root: Path) -> None:
    found = []
    for source in (stream(root, max_prompts=5), ListPrompts(PROMPTS[:5], name="letters")):
        data = make_data(eval_prompts=source, eval_annotator=Scores())
        found.append(make_trainer(root).validate(make_dar(tiny), data, verbose=False)[0])
    assert found[0] == found[1]


def test_demonstrations_are_mixed_and_streamed_too(tiny: str, root: Path) -> None:
    root.mkdir()
    names = ("aa", "bb")
    for name in names:
        rows = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": name}]} for text in PROMPTS]
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    (root / "template.jinja").write_text("{% for message in messages %}{{ message.content }} {% endfor %}", encoding="utf-8")
    sources: list[PromptSource] = [JsonlStream(str(root / f"{name}.jsonl"), reference_field="messages") for name in names]
    data = DemonstrationDataModule(MixedPrompts(sources, [3, 1]), prompts_per_rollout=8, micro_batch_prompts=4, max_response_tokens=8)
    policy = CausalPolicy(tiny, chat_template=str(root / "template.jinja"))
    result = fit(root / "run", tiny, module=SFT(policy, optimizer=adamw()), data=data, trainer={"max_epochs": 1})
    assert result.trainer.global_step == 2
    (state,) = data.state_dict()["ranks"]
    rows = zip(state["response_tokens"][:, 0], state["response_mask"][:, 0], strict=True)
    answers = [policy.decode(tokens[mask].tolist()) for tokens, mask in rows]
    assert sorted(answers) == ["aa"] * 6 + ["bb"] * 2
