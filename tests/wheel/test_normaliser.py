"""One step of plain gradient descent is the gradient of one mean over the optimizer step, computed here response by response."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.testing import assert_close

from lit_align.algorithms import DAR, SFT
from lit_align.data import DemonstrationDataModule, JsonlPrompts
from lit_align.models import CausalPolicy
from tests.tiny import make_dar, sgd
from tests.wheel.harness import Fit, Scores, fit, patchy

ALPHA, BETA, RATE = 0.5, 1.5, 0.01
SPLITS = ((8, 1), (4, 2), (2, 4), (1, 8))
ANSWERS = ["a", "bcd", "ij hgf", "cab", "", "ab ab ab ab", "h", "dd"]


def dar(model: str) -> DAR:
    return make_dar(model, alpha=ALPHA, beta=BETA, optimizer=sgd(RATE))


def sft(model: str) -> SFT:
    return SFT(CausalPolicy(model), optimizer=sgd(RATE))


def demonstrations(folder: Path, micro_batch_prompts: int) -> DemonstrationDataModule:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"prompt": "ab j"[: 1 + i % 4], "answer": answer}) for i, answer in enumerate(ANSWERS)]
    (folder / "answers.jsonl").write_text("\n".join(rows), encoding="utf-8")
    prompts = JsonlPrompts(str(folder / "answers.jsonl"), reference_field="answer")
    return DemonstrationDataModule(prompts, prompts_per_rollout=8, micro_batch_prompts=micro_batch_prompts, max_response_tokens=24)


def response_logp(policy: CausalPolicy, prompt: list[int], response: list[int]) -> Tensor:
    """``log pi`` of every token of one response, without padding, masks or batches, ``[T]``."""
    logits = policy.model(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1).gather(-1, torch.tensor(response).unsqueeze(-1)).squeeze(-1)


def stepped(policy: CausalPolicy, loss: Tensor) -> dict[str, Tensor]:
    """The weights after one step against the gradient."""
    loss.backward()
    return {name: (p - RATE * p.grad).detach() for name, p in policy.named_parameters() if p.grad is not None}


def expected_of_dar(model: str, one: Fit) -> dict[str, Tensor]:
    """By the book, from the text of one rollout of all 8 prompts."""
    policy, rollouts, annotation = CausalPolicy(model), one.recorder.rollouts[0], one.recorder.annotations[0]
    kept = [(b, k) for b in range(8) for k in range(4) if annotation.valid[b, k] and annotation.valid[b].sum() > 1]
    scores = annotation.scores.double()
    advantage = {(b, k): scores[b, k] - torch.stack([scores[b, j] for i, j in kept if i == b]).mean() for b, k in kept}
    scale = torch.stack(list(advantage.values())).std(correction=0)
    losses = []
    for b, k in kept:
        prompt = rollouts.prompt_tokens[b][rollouts.prompt_mask[b]].tolist()
        response = rollouts.response_tokens[b, k][rollouts.response_mask[b, k]].tolist()
        weight = (advantage[b, k] / scale / (ALPHA + BETA)).exp()  # the policy is the reference still
        losses.append(-weight * response_logp(policy, prompt, response).sum())
    assert 16 < len(kept) < 28
    return stepped(policy, torch.stack(losses).sum() / len(kept))


def expected_of_sft(model: str, data: DemonstrationDataModule) -> dict[str, Tensor]:
    policy = CausalPolicy(model)
    rows = [data.prompts[i] for i in range(8)]
    logps = [response_logp(policy, policy.encode(row), policy.encode_response(row, row.reference or "")) for row in rows]
    return stepped(policy, -torch.cat(logps).mean())


def trained(result: Fit) -> dict[str, Tensor]:
    return dict(result.module.policy.named_parameters())


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    moved = max(float((expected[name] - start[name].detach()).abs().max()) for name in expected)
    assert moved > 1e-3, "there is something to compare"
    for name, weight in expected.items():
        assert_close(actual[name].detach(), weight, atol=1e-6, rtol=0, msg=lambda m, name=name: f"{name}: {m}")


def one_step(root: Path, model: str, split: tuple[int, int], **options: Any) -> Fit:
    return fit(root, model, trainer={"max_epochs": 1, "accumulate_grad_batches": split[1]}, **options)


@pytest.mark.parametrize("split", SPLITS)
def test_dar_averages_over_the_valid_responses_of_the_step(split: tuple[int, int], tiny: str, root: Path) -> None:
    result = one_step(root, tiny, split, module=dar(tiny), micro_batch_prompts=split[0], annotator=Scores(patchy))
    assert_same(trained(result), expected_of_dar(tiny, result), dict(CausalPolicy(tiny).named_parameters()))


@pytest.mark.parametrize("split", SPLITS)
def test_sft_averages_over_the_tokens_of_the_step(split: tuple[int, int], tiny: str, root: Path) -> None:
    data = demonstrations(root, split[0])
    result = one_step(root, tiny, split, module=sft(tiny), data=data)
    expected = expected_of_sft(tiny, data)
    assert_same(trained(result), expected, dict(CausalPolicy(tiny).named_parameters()))
    lengths = {len(CausalPolicy(tiny).encode_response(data.prompts[i], answer)) for i, answer in enumerate(ANSWERS)}
    assert len(lengths) > 3, "lengths differ, so a mean of means would be another number"


@dataclass
class Normalisers(Callback):
    """Of every micro-batch: responses, tokens."""

    seen: list[tuple[float, float]] = field(default_factory=list)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append((float(batch.response_normaliser), float(batch.token_normaliser)))


def test_normalisers_count_what_is_valid(tiny: str, root: Path) -> None:
    normalisers = Normalisers()
    trainer = {"max_epochs": 1, "accumulate_grad_batches": 2}
    result = fit(root, tiny, module=dar(tiny), callbacks=[normalisers], trainer=trainer, micro_batch_prompts=2, annotator=Scores(patchy))
    batch = result.recorder.batches[0]
    counts = []
    for rows in (range(4), range(4, 8)):
        kept = [int(batch.loss_mask[b, k].sum()) for b in rows for k in range(4) if batch.valid[b, k]]
        counts += [(len(kept) / 2, sum(kept) / 2)] * 2  # halved: Lightning divides by the accumulation
    assert normalisers.seen == counts
    assert not batch.valid.all()
    assert counts[0] != counts[2]
