"""Takes the real modules through a rollout and one optimizer step on a tiny policy, by the loader of the data module."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lit_align.algorithms import AlignmentModule
from lit_align.functional.logprobs import response_logps
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, Prompt
from tests.algorithms.cases import Case
from tests.tiny import make_data, make_trainer

PROMPTS = ("a", "bc dj", "ji", "fgh", "c")
TEXTS = (  # a final "~" is a response that was cut off, "0" one without any token
    ("ab", "ca d~", "j", "bcde fa", "hg", "", "ij a", "ff~"),
    ("bad", "0", "ii~", "cd ", "dd", "abcabc", "e", "jh"),
    ("hhh", "a", "bf ghi~", "", "gac", "j ", "cab", "de"),
    ("i", "gg f", "ab~", "c", "hihi", "bea", "", "d d d~"),
    ("fa", "jj", "e b", "gi~", "d", "ca", "h", "bb"),
)
SCORES = torch.tensor(  # all different, and not a matter of length
    [
        [0.9, -0.4, 0.3, 1.7, -1.2, 0.15, 0.6, -0.8],
        [-0.2, 0.5, 1.1, -0.9, 0.25, 1.4, -1.5, 0.05],
        [1.3, 0.2, -0.6, 0.75, -0.1, -1.1, 0.45, 1.6],
        [-1.0, 0.35, 0.8, -0.3, 1.2, 0.55, -0.7, 0.0],
        [0.4, -0.5, 1.0, 0.1, -1.3, 0.7, 1.5, -0.15],
    ]
)


@dataclass(frozen=True)
class Step:
    """What one optimizer step would do: its gradient, flat, and everything that was logged."""

    gradient: Tensor
    metrics: dict[str, float]

    @property
    def size(self) -> float:
        return float(self.gradient.norm())

    def distance(self, other: "Step") -> float:
        """Of the gradients, in units of this one's length."""
        return float((self.gradient - other.gradient).norm()) / self.size


def assert_same(one: Step, other: Step, metrics: bool = True) -> None:
    """The same gradient to 1e-4 of its length (float32 alone makes 3e-6), long enough to be compared, and the same log."""
    assert min(one.size, other.size) > 1e-2
    assert one.distance(other) < 1e-4
    if metrics:
        assert one.metrics == pytest.approx(other.metrics, rel=1e-3, abs=1e-4)


class Driver:
    """One tiny policy for all cases, put back before each."""

    def __init__(self, model: str, folder: Path) -> None:
        self.policy, self.folder = CausalPolicy(model), folder
        self.start = {name: value.clone() for name, value in self.policy.state_dict().items()}
        reference = self.policy.make_reference()
        self.policy.make_reference = lambda: reference  # loaded once, not for every case
        self._trainers: dict[tuple[int, str], Any] = {}
        self._plain: dict[tuple[str, int], Step] = {}

    def batch(self, case: Case, k: int = 4, prompts: int = 4) -> AlignmentBatch:
        """Prompts and responses of mixed lengths, some of them cut off and one empty."""
        heads = [self.policy.encode(Prompt(i, PROMPTS[i])) for i in range(prompts)]
        answers = [[self._tokens(i, text) for text in TEXTS[i][:k]] for i in range(prompts)]
        wide, long, pad = max(map(len, heads)), max(len(answer) for row in answers for answer in row), self.policy.pad_id
        mask = torch.tensor([[[t < len(answer) for t in range(long)] for answer in row] for row in answers])
        scores = SCORES[:prompts, :k]
        scores = (scores == scores.amax(-1, keepdim=True)).float() if case.demonstrated else scores
        preferences = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sigmoid().where(~torch.eye(k, dtype=torch.bool), math.nan)
        return AlignmentBatch(
            prompt_tokens=torch.tensor([[pad] * (wide - len(head)) + head for head in heads]),
            prompt_mask=torch.tensor([[p >= wide - len(head) for p in range(wide)] for head in heads]),
            response_tokens=torch.tensor([[answer + [pad] * (long - len(answer)) for answer in row] for row in answers]),
            response_mask=mask,
            loss_mask=mask,
            prompt_ids=torch.arange(prompts),
            scores=scores,
            valid=torch.ones_like(scores, dtype=torch.bool),
            finished=torch.tensor([[not text.endswith(("~", "0")) for text in TEXTS[i][:k]] for i in range(prompts)]),
            optimizer_steps=torch.zeros(prompts, dtype=torch.long),
            preferences=preferences if case.judged else None,
            source=torch.tensor(case.sources[:prompts]) if case.sources else None,
            uniforms=torch.linspace(0.1, 0.4, prompts) if case.sources else None,
        )

    def plain(self, name: str, case: Case, k: int = 4) -> Step:
        """The step of the batch as it comes, all prompts in one micro-batch: what variations are compared with."""
        if (name, k) not in self._plain:
            self._plain[name, k] = self.step(case, self.batch(case, k))
        return self._plain[name, k]

    def step(
        self, case: Case, batch: AlignmentBatch, micro: int | None = None, moves: int = 2, precision: str = "32-true", trim: bool = True
    ) -> Step:
        """Prepare ``batch`` and take its one optimizer step in micro-batches of ``micro`` prompts (None: all together).

        ``moves``: how often the policy moves; after 0 it still is reference and sampler, after 1 the sampler, after 2 the three
        differ. Without ``trim`` the forward sees the columns that are padding in every row.
        """
        rows = len(batch.scores)
        micro = rows if micro is None else micro
        trainer = self._trainer(rows // micro, precision)
        self.policy.load_state_dict(self.start)
        module = case.module(self.policy)
        module._trainer = trainer
        with trainer.precision_plugin.forward_context():
            self._move(1, moves > 0)
            with torch.no_grad():
                sampled = self.policy(batch).token_logps.where(batch.response_mask, 0.0)
            prepared, _ = module.prepare_rollout(replace(batch, sampling_logps=sampled), module.needs, 2)
            self._move(2, moves > 1)
            self._accumulate(module, prepared, micro, trim)
        sums = {name: float(value) * micro / rows for name, value in module._sums.items()}
        return Step(self._gradient(), module._pending | sums)

    @torch.no_grad()
    def loved_by_the_reference(self, batch: AlignmentBatch) -> Tensor:
        """How much likelier the reference finds each response than the policy after its first move, in nats, ``[B, K]``."""
        logps = []
        for moved in (False, True):
            self.policy.load_state_dict(self.start)
            self._move(1, moved)
            logps.append(response_logps(self.policy(batch).token_logps, batch.loss_mask))
        return logps[0] - logps[1]

    def lean(self, batch: AlignmentBatch, moved: bool = False) -> Tensor:
        """The direction in which the best response to every prompt gains most on its worst, flat."""
        self.policy.load_state_dict(self.start)
        self._move(1, moved)
        self.policy.zero_grad()
        logps = response_logps(self.policy(batch).token_logps, batch.loss_mask)
        best, worst = batch.scores.argmax(-1, keepdim=True), batch.scores.argmin(-1, keepdim=True)
        (logps.gather(-1, best) - logps.gather(-1, worst)).sum().backward()
        return self._gradient()

    def _accumulate(self, module: AlignmentModule, batch: AlignmentBatch, micro: int, trim: bool) -> None:
        data = make_data(micro_batch_prompts=micro)
        data.trainer = module.trainer
        loader = data._loader(0, batch)
        parts = list(loader) if trim else [replace(batch, **loader.plan[0].normalisers)]
        module.zero_grad(set_to_none=True)
        for i, part in enumerate(parts):
            (module.training_step(part, i)["loss"] / len(parts)).backward()

    def _gradient(self) -> Tensor:
        return torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self.policy.parameters()])

    def _move(self, seed: int, moved: bool) -> None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.policy.parameters():
                p += 0.02 * torch.randn(p.shape, generator=generator) if moved else 0.0

    def _tokens(self, i: int, text: str) -> list[int]:
        said = self.policy.encode_response(Prompt(i, PROMPTS[i]), text.rstrip("~0"))
        return said[:-1] if text.endswith(("~", "0")) else said

    def _trainer(self, accumulate: int, precision: str) -> Any:
        key = accumulate, precision
        if key not in self._trainers:
            self._trainers[key] = make_trainer(self.folder, accumulate_grad_batches=accumulate, precision=precision)
        return self._trainers[key]


def rows(batch: AlignmentBatch, index: Sequence[int]) -> AlignmentBatch:
    """These prompts, in this order, as wide as they were."""
    return batch.map_tensors(lambda tensor, letters: tensor[list(index)] if letters.startswith("B") else tensor)


def columns(batch: AlignmentBatch, index: Sequence[int]) -> AlignmentBatch:
    """These responses of every prompt, in this order."""

    def pick(tensor: Tensor, letters: str) -> Tensor:
        for axis, letter in enumerate(letters):
            tensor = tensor.index_select(axis, torch.tensor(index)) if letter == "K" else tensor
        return tensor

    return batch.map_tensors(pick)


def padded(batch: AlignmentBatch, extra: int = 3) -> AlignmentBatch:
    """The same with tokens that nobody may read before every prompt and after every response."""

    def widen(tensor: Tensor, letters: str) -> Tensor:
        if letters[-1] not in "PT":
            return tensor
        junk = torch.arange(3, 3 + extra).expand(*tensor.shape[:-1], extra).to(tensor.dtype)
        junk = junk if tensor.dtype == torch.long else torch.zeros_like(junk)
        return torch.cat([junk, tensor] if letters[-1] == "P" else [tensor, junk], -1)

    return batch.map_tensors(widen)


def invalid(batch: AlignmentBatch, which: Tensor, score: float = math.nan) -> AlignmentBatch:
    """The same where these responses, bool ``[B, K]``, have this score, which is not valid; preferences are NaN where the score is."""
    preferences = batch.preferences
    if preferences is not None and math.isnan(score):
        preferences = preferences.masked_fill(which.unsqueeze(-1) | which.unsqueeze(-2), math.nan)
    return replace(batch, valid=batch.valid & ~which, scores=batch.scores.masked_fill(which, score), preferences=preferences)
