"""Demonstrations as a batch, token by token, and what learning them does."""

from pathlib import Path
from typing import Any, final

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lit_align.algorithms import SFT
from lit_align.data import DemonstrationDataModule, ListPrompts
from lit_align.generation import CacheSampler
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, EncodedPrompt, IndexedPrompts, Prompt, PromptSource, Stream, UserError
from tests.models.batches import plain_logps
from tests.tiny import adamw, make_trainer, write_tiny

EOS = 1  # then BOS, and the letters from 3 on; padding is 0
PAIRS = [("a", "bc"), ("def", ""), ("hi", "abcdef"), ("jj j", "abcd")]


@final
class Pairs(IndexedPrompts):
    """Prompts and their answers."""

    def __init__(self, pairs: list[tuple[str, str]], first: int = 50) -> None:
        self.pairs, self.first = pairs, first

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Prompt:
        return Prompt(self.first + index, *self.pairs[index])


class Batches(Callback):
    """Every micro-batch."""

    def __init__(self) -> None:
        self.seen: list[AlignmentBatch] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append(batch)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_tiny(tmp_path_factory.mktemp("tiny"))


def data_of(train: PromptSource, held_out: PromptSource | None = None, *, each: int, micro: int, room: int = 8) -> DemonstrationDataModule:
    """``each`` demonstrations per epoch with answers of at most ``room`` tokens: the tiny context has 64."""
    return DemonstrationDataModule(train, held_out, prompts_per_rollout=each, micro_batch_prompts=micro, max_response_tokens=room)


def fit(root: Path, model: str, data: DemonstrationDataModule, **trainer: Any) -> tuple[Trainer, SFT, list[AlignmentBatch]]:
    """Learn them, by default for one epoch."""
    batches, module = Batches(), SFT(CausalPolicy(model), adamw())
    made = make_trainer(root, callbacks=[batches], **({"max_epochs": 1} | trainer))
    made.fit(module, data)
    return made, module, batches.seen


def letters(text: str) -> list[int]:
    return [3 + "abcdefghij ".index(letter) for letter in text]


def test_a_batch_is_what_one_would_write_by_hand(tiny: str, tmp_path: Path) -> None:
    data = data_of(Pairs(PAIRS), each=4, micro=4, room=5)
    _, _, (batch,) = fit(tmp_path, tiny, data)
    order = batch.prompt_ids.argsort()  # as in PAIRS
    assert batch.prompt_ids[order].tolist() == [50, 51, 52, 53]

    def by_row(tensor: torch.Tensor) -> list[Any]:
        return tensor[order].tolist()

    assert by_row(batch.prompt_tokens) == [
        [0, 0, 0, *letters("a")],
        [0, *letters("def")],
        [0, 0, *letters("hi")],
        letters("jj j"),
    ]
    assert by_row(batch.prompt_mask.sum(-1)) == [1, 3, 2, 4]
    assert batch.prompt_mask[:, -1].all(), "padded on the left"
    assert by_row(batch.response_tokens) == [
        [[*letters("bc"), EOS, 0, 0]],
        [[EOS, 0, 0, 0, 0]],
        [letters("abcde")],  # cut: what follows, and its EOS, are not learnt
        [[*letters("abcd"), EOS]],  # exactly as long as may be
    ]
    assert by_row(batch.response_mask) == [[[True] * n + [False] * (5 - n)] for n in (3, 1, 5, 5)]
    assert torch.equal(batch.loss_mask, batch.response_mask), "EOS is learnt"
    assert by_row(batch.finished) == [[True], [True], [False], [True]]
    assert by_row(batch.scores) == [[1.0]] * 4
    assert by_row(batch.valid) == [[True]] * 4
    assert (batch.response_normaliser, batch.token_normaliser) == (4, 14)
    assert batch.sampling_logps is batch.reference_logps is batch.weights is batch.preferences is None


def test_rows_belong_to_the_steps_that_they_are_in(tiny: str, tmp_path: Path) -> None:
    data = data_of(Pairs(PAIRS), each=4, micro=1)
    _, _, batches = fit(tmp_path, tiny, data, accumulate_grad_batches=2)
    assert [batch.optimizer_steps.tolist() for batch in batches] == [[0], [0], [1], [1]]
    tokens = [int(batch.loss_mask.sum()) for batch in batches]
    assert [batch.token_normaliser for batch in batches] == [sum(tokens[:2]) / 2] * 2 + [sum(tokens[2:]) / 2] * 2


def test_an_answer_reserves_its_room_in_the_context(tiny: str, tmp_path: Path) -> None:
    data = data_of(Pairs(PAIRS), each=3, micro=3, room=61)
    with pytest.warns(UserWarning, match=r"1 of 4 prompts \(25\.0%\) are longer than 3 tokens and dropped"):
        _, _, (batch,) = fit(tmp_path, tiny, data)
    assert sorted(batch.prompt_ids.tolist()) == [50, 51, 52]


def test_an_answer_longer_than_the_context_names_the_setting(tiny: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"No room for a prompt: -1 tokens are left of the context\. .*`max_response_tokens`"):
        fit(tmp_path, tiny, data_of(Pairs(PAIRS), each=4, micro=4, room=65))


@pytest.mark.parametrize("held_out", [False, True])
def test_a_prompt_without_an_answer_is_refused(held_out: bool, tiny: str, tmp_path: Path) -> None:
    sources = [Pairs(PAIRS), ListPrompts(["ab"])] if held_out else [ListPrompts(["ab"]), None]
    data = data_of(*sources, each=1, micro=1)
    with pytest.raises(UserError, match=r"needs an answer, but the prompt 'ab' has none\. .*`reference_field` of the prompt source"):
        fit(tmp_path, tiny, data)


def mean_nll(policy: CausalPolicy, pairs: list[tuple[str, str]]) -> float:
    """Over all answer tokens, EOS included, one row at a time without padding."""
    logps = [plain_logps(policy.model, letters(prompt), [*letters(answer), EOS]) for prompt, answer in pairs]
    return -float(torch.cat(logps).mean())


HELD_OUT = [("ab", "cab"), ("b", "a"), ("c d", "abcabc"), ("de", "bb"), ("e", "abc abc")]


@pytest.mark.parametrize("chunk", [1, 2, 4, 5])
def test_val_loss_is_the_mean_over_tokens_whatever_the_chunks(chunk: int, tiny: str, tmp_path: Path) -> None:
    data = data_of(Pairs(PAIRS), Pairs(HELD_OUT, 90), each=chunk, micro=chunk)
    module = SFT(CausalPolicy(tiny), adamw())
    (result,) = make_trainer(tmp_path).validate(module, data, verbose=False)
    assert result == {"val/loss": pytest.approx(mean_nll(module.policy, HELD_OUT), abs=1e-5)}  # pyright: ignore[reportArgumentType]
    (result,) = make_trainer(tmp_path).test(module, data, verbose=False)
    assert result == {"test/loss": pytest.approx(mean_nll(module.policy, HELD_OUT), abs=1e-5)}  # pyright: ignore[reportArgumentType]


def test_learning_lowers_val_loss_and_the_answer_is_given_to_its_end(tiny: str, tmp_path: Path) -> None:
    pairs = [("a", "bc"), ("def", "g"), ("hi", "fed"), ("jj j", "abcd")]
    data = data_of(Pairs(pairs), Pairs(pairs, 90), each=4, micro=2)
    before = mean_nll(CausalPolicy(tiny), pairs)
    trainer, module, _ = fit(tmp_path, tiny, data, max_epochs=60, check_val_every_n_epoch=60, accumulate_grad_batches=2)
    after = float(trainer.callback_metrics["val/loss"])
    assert before > 2
    assert after < 0.05
    module.policy.eval()
    assert after == pytest.approx(mean_nll(module.policy, pairs), abs=1e-5)
    prompts = [EncodedPrompt(prompt, tuple(letters(str(prompt.content)))) for prompt in map(Pairs(pairs).__getitem__, range(4))]
    with module.policy.inference():
        said = CacheSampler(max_new_tokens=8, greedy=True).sample(module.policy, prompts, 1, Stream(0, "test", 0))
    assert [text for (text,) in said.texts] == [answer for _, answer in pairs]
    assert said.finished.all(), "EOS was learnt"


def test_the_end_of_a_cut_answer_is_not_learnt(tiny: str, tmp_path: Path) -> None:
    pairs = [("a", "bcdefg")]
    data = data_of(Pairs(pairs), each=1, micro=1, room=3)
    before = CausalPolicy(tiny)
    _, module, _ = fit(tmp_path, tiny, data, max_epochs=60)
    prompt, start = letters("a"), letters("bcd")
    assert float(plain_logps(module.policy.model, prompt, start).sum()) > -0.3
    ends = [float(plain_logps(policy.model, prompt, [*start, EOS])[-1]) for policy in (before, module.policy)]
    assert ends[1] < max(ends[0], -1)


def test_predict_says_what_it_is_for(tiny: str, tmp_path: Path) -> None:
    data = data_of(Pairs(PAIRS), Pairs(HELD_OUT, 90), each=4, micro=4)
    with pytest.raises(UserError, match="predict writes sampled answers: use OnlineDataModule with eval_prompts"):
        make_trainer(tmp_path).predict(SFT(CausalPolicy(tiny), adamw()), data)
