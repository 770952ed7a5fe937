"""Fixed answers as a batch, token by token, and what training on them does."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import pytest
import torch
from torch.nn.functional import logsigmoid

from lit_align.algorithms import DPO, IPO, KTO, ORPO, RLOO, SFT, Above, AlignmentModule, IterativeSFT, MovingAverage, SimPO, SLiC
from lit_align.data import ListPrompts, MixedPrompts, PreferenceDataModule
from lit_align.models import CausalPolicy
from lit_align.types import Answer, IndexedPrompts, Prompt, PromptStream, UserError
from tests.data.test_demonstrations import Batches, letters
from tests.tiny import adamw, make_dar, make_trainer, sgd, write_tiny
from tests.tokenizers import of_bytes, write_with_tokenizer
from tests.wheel.harness import differing, fit
from tests.wheel.test_resume import Saves

EOS, BOS = 1, 2


def pair(chosen: str, rejected: str) -> tuple[Answer, ...]:
    return Answer(chosen, 1.0), Answer(rejected, 0.0)


PAIRS = [("a", pair("bc", "dd")), ("", pair("ab", "j")), ("hi", pair("a", "abcdefg")), ("jj j", pair("fed", "d"))]
LISTS = [
    ("a", (Answer("dd", 0.5), Answer("e", None), Answer("bc", 3.0), Answer("f", 2.0))),
    ("", (Answer("j", -2.0), Answer("ab", -1.0))),
    ("hi", (Answer("a", 1.0), Answer("abcdefg", 0.0), Answer("c", 0.5))),
    ("jj j", (Answer("fed", 7.0), Answer("d", 3.0))),
]
LABELLED = [("a", (Answer("bc", 1.0),)), ("b", (Answer("dd", 0.0),)), ("hi", (Answer("a", 1.0),)), ("j", (Answer("e", 0.0),))]


@final
class Rows(IndexedPrompts):
    """Prompts with these answers."""

    def __init__(self, rows: Sequence[tuple[Any, tuple[Answer, ...]]] = PAIRS, first: int = 50, name: str = "rows") -> None:
        self.rows, self.first, self.name = rows, first, name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Prompt:
        content, answers = self.rows[index]
        return Prompt(self.first + index, content, answers=answers)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def chatty(tmp_path_factory: pytest.TempPathFactory) -> CausalPolicy:
    template = Path(__file__).parents[1] / "chatml.jinja"
    return CausalPolicy(write_with_tokenizer(tmp_path_factory.mktemp("chatty"), of_bytes(), context=256), chat_template=str(template))


def data_of(rows: Any = PAIRS, held_out: Any = None, each: int = 4, micro: int = 4, room: int = 8, **options: Any) -> PreferenceDataModule:
    eval_prompts = None if held_out is None else Rows(held_out, 90)
    sizes: dict[str, Any] = {"prompts_per_rollout": each, "micro_batch_prompts": micro, "max_response_tokens": room}
    return PreferenceDataModule(Rows(rows), eval_prompts, **(sizes | options))


def batch_of(root: Path, policy: CausalPolicy, rows: Any, **options: Any) -> Any:
    """The batch of the only step, in the order of ``rows``."""
    batches = Batches()
    trainer = make_trainer(root, max_epochs=1, callbacks=[batches])
    trainer.fit(SFT(policy, sgd()), data_of(rows, each=len(rows), micro=len(rows), **options))
    (batch,) = batches.seen
    return batch.rows(batch.prompt_ids.argsort())


def test_a_batch_is_what_one_would_write_by_hand(tiny: str, tmp_path: Path) -> None:
    rows = [("a", (Answer("dd", 1.0), Answer("e", None), Answer("bcdefg", 0.25))), ("", pair("ab", "j"))]
    batch = batch_of(tmp_path, CausalPolicy(tiny), rows, room=4)
    assert batch.prompt_tokens.tolist() == [letters("a"), [BOS]]
    assert batch.response_tokens.tolist() == [
        [[*letters("dd"), EOS, 0], [*letters("e"), EOS, 0, 0], letters("bcde")],
        [[*letters("ab"), EOS, 0], [*letters("j"), EOS, 0, 0], [0, 0, 0, 0]],
    ]
    assert batch.response_mask.sum(-1).tolist() == [[3, 2, 4], [3, 2, 0]]
    assert torch.equal(batch.response_mask, batch.loss_mask)
    assert batch.scores.tolist() == [[1.0, 0.0, 0.25], [1.0, 0.0, 0.0]]
    assert batch.finished.tolist() == [[True, True, False], [True, True, False]]
    assert batch.valid.tolist() == [[True, False, False], [True, False, False]], "SFT takes score 1 only"
    assert batch.sampling_logps is batch.reference_logps is batch.preferences is None


CHAT = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})


def learnt(policy: CausalPolicy, batch: Any) -> tuple[str, str, str]:
    """Prompt, response, and of it what is learnt."""
    tokens = batch.response_tokens[0, 0]
    parts = (batch.prompt_tokens[0], tokens[batch.response_mask[0, 0]], tokens[batch.loss_mask[0, 0]])
    return tuple(policy.tokenizer.decode(part.tolist()) for part in parts)  # pyright: ignore[reportReturnType]


U, M, E = "<|im_start|>user\n", "<|im_start|>assistant\n", "<|im_end|>"


def test_every_turn_of_a_conversation_is_learnt(chatty: CausalPolicy, tmp_path: Path) -> None:
    rows = [(CHAT, (Answer("d", conversation=True),))]
    prompt, response, said = learnt(chatty, batch_of(tmp_path, chatty, rows, room=2))
    assert prompt == f"<bos>{U}a{E}\n{M}"
    assert response == f"b{E}\n{U}c{E}\n{M}d{E}", "the last answer has its room, and earlier turns that which they have as a prompt"
    assert said == f"b{E}d{E}"
    assert learnt(chatty, batch_of(tmp_path, chatty, rows, room=1))[1:] == (f"b{E}\n{U}c{E}\n{M}d", f"b{E}d")


@pytest.mark.parametrize(
    ("answers", "options"),
    [
        ((Answer("d"),), {}),
        ((Answer("d", conversation=True), Answer("e", 0.0)), {}),
        ((Answer("d", conversation=True),), {"max_prompt_tokens": 24, "long_prompts": "truncate_left"}),
    ],
)
def test_earlier_turns_are_the_prompts(answers: Any, options: dict[str, Any], chatty: CausalPolicy, tmp_path: Path) -> None:
    """Where the data say nothing else, of several answers, and where the prompt lost its beginning."""
    batch = batch_of(tmp_path, chatty, [(CHAT, answers)], **options)
    prompt, *response = learnt(chatty, batch)
    assert prompt == (f"<bos>{U}c{E}\n{M}" if options else f"<bos>{U}a{E}\n{M}b{E}\n{U}c{E}\n{M}")
    assert response == [f"d{E}", f"d{E}"]


# By hand


def logp(model: Any, prompt: list[int], answer: str, room: int = 8) -> torch.Tensor:
    """Of a whole answer, with gradient."""
    response = [*letters(answer), EOS][:room]
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)].sum()


def dpo_by_hand(policy: CausalPolicy, reference: CausalPolicy, room: int = 8) -> torch.Tensor:
    """The mean over `PAIRS`."""
    losses = []
    for text, (chosen, rejected) in PAIRS:
        prompt = letters(text) or [BOS]
        better, worse = (
            logp(policy.model, prompt, str(a.content), room) - logp(reference.model, prompt, str(a.content), room).detach()
            for a in (chosen, rejected)
        )
        losses.append(-logsigmoid(0.1 * (better - worse)))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("rows", "micro", "room"), [(PAIRS, 4, 8), (PAIRS, 1, 8), (PAIRS, 2, 3), (LISTS, 2, 8)])
def test_dpo_takes_the_steps_that_one_calculates(rows: Any, micro: int, room: int, tiny: str, tmp_path: Path) -> None:
    """Three steps of gradient descent, on pairs and on lists whose best and worst they are, whole and accumulated, cut and not."""
    theirs, reference = CausalPolicy(tiny), CausalPolicy(tiny)
    losses = []
    for _ in range(3):
        loss = dpo_by_hand(theirs, reference, room)
        theirs.zero_grad()
        loss.backward()
        with torch.no_grad():
            for weight in theirs.parameters():
                assert weight.grad is not None
                weight -= 0.5 * weight.grad
        losses.append(float(loss.detach()))
    module = DPO(CausalPolicy(tiny), beta=0.1, optimizer=sgd(0.5))
    trainer = {"max_epochs": 3, "accumulate_grad_batches": 4 // micro}
    result = fit(tmp_path, tiny, module=module, data=data_of(rows, micro=micro, room=room), trainer=trainer)
    assert losses[0] - losses[2] > 1e-2
    assert result.recorder.losses == pytest.approx(losses, abs=1e-6)
    for ours, others in zip(module.policy.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours, others, atol=1e-6, rtol=0)


@pytest.mark.parametrize("chunk", [1, 3, 4])
def test_held_out_pairs_are_measured_before_and_after(chunk: int, tiny: str, tmp_path: Path) -> None:
    policy = CausalPolicy(tiny)
    module = DPO(policy, beta=0.1, optimizer=sgd(0.5))
    data, trainer = data_of(PAIRS, [*PAIRS, *LABELLED], each=chunk, micro=chunk), make_trainer(tmp_path)
    (before,) = trainer.validate(module, data, verbose=False)
    assert before == pytest.approx({"val/loss": math.log(2), "val/margin": 0.0, "val/accuracy": 0.0}, abs=1e-6)
    with torch.no_grad():
        for i, weight in enumerate(module.policy.parameters()):
            weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i))
    expected = float(dpo_by_hand(policy, CausalPolicy(tiny)).detach())
    (after,) = trainer.validate(module, data, verbose=False)
    assert abs(expected - math.log(2)) > 1e-3
    assert after["val/loss"] == pytest.approx(expected, abs=1e-5)
    assert after["val/margin"] != 0
    assert after["val/accuracy"] in (0, 0.25, 0.5, 0.75, 1), "of four pairs; answers without another one are none"


# Every algorithm for fixed data


def module_of(kind: type[AlignmentModule], model: str, **options: Any) -> AlignmentModule:
    return kind(CausalPolicy(model), optimizer=adamw(), **options)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("rows", [PAIRS, LISTS])
@pytest.mark.parametrize(
    ("kind", "options"),
    [(DPO, {}), (IPO, {}), (SLiC, {}), (SimPO, {}), (ORPO, {}), (IterativeSFT, {}), (IterativeSFT, {"select": Above(1.0)}), (SFT, {})],
)
def test_it_learns_and_says_so(kind: Any, options: dict[str, Any], rows: Any, tiny: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, max_epochs=8, check_val_every_n_epoch=8)
    module, data = module_of(kind, tiny, **options), data_of(rows, rows, micro=2)
    (before,) = trainer.validate(module, data, verbose=False)
    trainer.fit(module, data)
    after = {name: float(value) for name, value in trainer.callback_metrics.items()}
    assert after["val/loss"] < before["val/loss"] - 0.01 * abs(before["val/loss"])
    if "val/accuracy" in before:
        assert after["val/accuracy"] == 1
        assert after["val/margin"] > before["val/margin"]


def test_sft_imitates_what_is_labelled_good_and_no_other(tiny: str, tmp_path: Path) -> None:
    good = [row for row in LABELLED if row[1][0].score]
    states = []
    for name, rows in (("all", LABELLED), ("good", good)):
        module = SFT(CausalPolicy(tiny), sgd())
        fit(tmp_path / name, tiny, module=module, data=data_of(rows, each=len(rows), micro=len(rows)), trainer={"max_epochs": 1})
        states.append(torch.cat([p.detach().flatten() for p in module.policy.parameters()]))
    torch.testing.assert_close(states[0], states[1], atol=1e-6, rtol=0)


# Refusals


@pytest.mark.parametrize("kind", [KTO, RLOO])
def test_an_algorithm_that_needs_samples_is_refused_before_anything_is_read(kind: Any, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=rf"{kind.__name__} trains on samples of the policy, but these data are fixed: use OnlineDataModule"
    ):
        make_trainer(tmp_path).fit(module_of(kind, tiny), data_of([("a", ())]))
    with pytest.raises(UserError, match="DAR trains on samples"):
        make_trainer(tmp_path).fit(make_dar(tiny), data_of())


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("mixed", [False, True])
def test_rows_without_an_answer_are_refused_before_the_run(held_out: bool, mixed: bool, tiny: str, tmp_path: Path) -> None:
    source = MixedPrompts([Rows(), ListPrompts(["ab"])]) if mixed else ListPrompts(["ab"])
    options: dict[str, Any] = {"eval_prompts": source} if held_out else {"prompts": source}
    options = {"prompts": Rows()} | options
    data = PreferenceDataModule(**options, prompts_per_rollout=4, micro_batch_prompts=4, max_response_tokens=8)
    with pytest.raises(
        UserError, match=r"answer to every prompt: 'chosen' and 'rejected'.* beside 'ab' there is no field at all\. .*`answers`"
    ):
        make_trainer(tmp_path).fit(module_of(DPO, tiny), data)


@final
class Endless(PromptStream):
    """Pairs, and then a prompt alone."""

    def read(self, start: int = 0) -> Any:
        return iter([*Rows(PAIRS), Prompt(9, "b")][start:])


def test_a_stream_is_told_when_it_is_read(tiny: str, tmp_path: Path) -> None:
    data = PreferenceDataModule(Endless(), prompts_per_rollout=4, micro_batch_prompts=4, max_response_tokens=8)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(module_of(DPO, tiny), data)
    assert trainer.global_step == 1
    with pytest.raises(UserError, match="beside 'b' there is no field at all"):
        make_trainer(tmp_path, max_epochs=2).fit(module_of(DPO, tiny), data)


@pytest.mark.parametrize(
    ("kind", "rows"),
    [
        (DPO, LABELLED),
        (DPO, [("a", (Answer("b", 2.0), Answer("c", 2.0)))] * 4),
        (SFT, [("a", (Answer("b", 2.0),))] * 4),
        (IterativeSFT, LABELLED),
    ],
)
def test_data_that_teach_an_algorithm_nothing_are_refused(kind: Any, rows: Any, tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"{kind.__name__} learns nothing from any of the \d labelled answers to the first 4 prompts"):
        make_trainer(tmp_path).fit(module_of(kind, tiny), data_of(rows))


def test_a_later_rollout_may_teach_nothing(tiny: str, tmp_path: Path) -> None:
    """It is left out and counted, as any step without a pair."""
    rows = [*PAIRS, *[("a", (Answer("b", 2.0), Answer("c", 2.0)))] * 4]
    result = fit(tmp_path, tiny, module=module_of(DPO, tiny), data=data_of(rows, each=2, micro=1), trainer={"max_epochs": 4})
    assert 0 < int(result.module.skipped_steps) < 8


def test_long_prompts_are_dropped_and_counted(tiny: str, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"1 of 4 prompts \(25\.0%\) are longer than 3 tokens and dropped"):
        make_trainer(tmp_path, max_epochs=1).fit(module_of(DPO, tiny), data_of(max_prompt_tokens=3, each=2, micro=2))


# Stopped, and on two processes


def moving(model: str) -> DPO:
    """With everything that has a state."""
    return DPO(CausalPolicy(model), anchor=MovingAverage(0.5), optimizer=adamw())


def many() -> list[Any]:
    """Lists of different lengths, unevenly spread."""
    return [(text * (i + 1), answers) for i in range(3) for text, answers in [*PAIRS, *LISTS]]


def test_resumed_inside_a_rollout(tmp_path: Path) -> None:
    model = write_tiny(tmp_path / "model", dropout=0.2)
    trainer: dict[str, Any] = {"max_epochs": 3, "accumulate_grad_batches": 2}
    saves, options = Saves(tmp_path), {"each": 8, "micro": 2, "inner_epochs": 2}
    whole = fit(tmp_path / "whole", model, module=moving(model), data=data_of(many(), **options), callbacks=[saves], trainer=trainer)
    assert whole.trainer.global_step == 12
    for moment in ("before-0", "after-2", "after-5"):
        file = tmp_path / f"{moment}.ckpt"
        rest = fit(tmp_path / moment, model, module=moving(model), data=data_of(many(), **options), trainer=trainer, ckpt_path=file)
        assert differing(whole.state, rest.state) == [], moment
