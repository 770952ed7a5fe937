"""No ratio without the same computation: loss, advantages and gradient of both sides on a rollout that TRL sampled.

The policy is moved away from its reference first: at the reference itself DPO's loss and GRPO's divergence say nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.optim import Optimizer

from benchmarks.vs_trl import ours
from benchmarks.vs_trl.case import Case
from benchmarks.vs_trl.world import World
from lit_align.models import CausalPolicy
from lit_align.types import AlignmentBatch, EncodedPrompt, Policy, RolloutCallback, Rollouts, Sampler, Stream

TOLERANCE = 1e-4


class Disagreement(Exception):
    """What was to be compared is not the same computation."""


@dataclass(frozen=True)
class Rollout:
    """A batch, what was made of it, and the gradient. ``responses`` (token ids) and ``advantages`` are by prompt, empty where the data
    are fixed or there are none."""

    responses: dict[str, list[list[int]]]
    advantages: dict[str, Tensor]
    loss: float
    gradient: dict[str, Tensor]


def distances(theirs: Rollout, mine: Rollout, loss: bool = True) -> dict[str, float]:
    """Of losses and of advantages the largest difference, of gradients that of vectors relative to the length of theirs.

    Raises:
        Disagreement: if prompts or parameters are not the same ones.
    """
    if theirs.gradient.keys() != mine.gradient.keys() or theirs.advantages.keys() != mine.advantages.keys():
        raise Disagreement("The two sides do not have the same parameters with a gradient, or the same prompts with advantages.")
    flat = [torch.cat([side.gradient[name].flatten() for name in sorted(side.gradient)]).double() for side in (theirs, mine)]
    found = {"gradient": float((flat[0] - flat[1]).norm() / flat[0].norm())}
    if loss:
        found["loss"] = abs(theirs.loss - mine.loss)
    if theirs.advantages:
        found["advantages"] = max(float((a - mine.advantages[prompt]).abs().max()) for prompt, a in theirs.advantages.items())
    return found


def require_agreement(found: dict[str, float]) -> None:
    """Raises:
    Disagreement: if a distance is not below the tolerance, or is no number.
    """
    if not all(value < TOLERANCE for value in found.values()):
        listed = ", ".join(f"{name} {value:.1e}" for name, value in found.items())
        raise Disagreement(f"No ratio: on TRL's own rollout the two sides differ by more than {TOLERANCE:g} ({listed}).")


def check(case: Case, world: World, root: Path, peer: Any) -> dict[str, float]:
    """Distances on a rollout of ``peer``, a ``theirs.Peer`` of a policy that `moved` has moved.

    Raises:
        Disagreement: if they are too large.
    """
    theirs = peer.rollout()
    found = distances(theirs, replay(case, world, root, theirs), loss=case.algorithm != "rloo")  # at ratio 1 TRL's loss is always 0
    require_agreement(found)
    return found


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    """The same model, with noise on its weights, the same for the same model."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += 0.05 * parameter.std() * torch.randn(parameter.shape, generator=generator)
    return model


def replay(case: Case, world: World, root: Path, theirs: Rollout) -> Rollout:
    """The same step by lit_align's own loop on the responses of ``theirs``, at the same moved weights."""
    policy, seen = CausalPolicy(world.model), Observer()
    moved(policy.model)
    data = ours.make_data(case, world, Replayed(theirs.responses, case.response_tokens))
    ours.fit(ours.make_module(case, policy), data, root, 1, [seen])
    advantages = {} if seen.advantages is None else dict(zip(seen.prompts, seen.advantages, strict=True))
    return Rollout(theirs.responses, advantages, seen.loss, seen.gradient)


@final
class Replayed(Sampler):
    """Says what it was told, and how likely the policy finds it."""

    def __init__(self, responses: dict[str, list[list[int]]], max_new_tokens: int) -> None:
        self._responses, self.max_new_tokens = responses, max_new_tokens

    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """The responses that were given for these prompts."""
        b, k = len(prompts), responses_per_prompt
        asked = [torch.tensor(prompt.tokens).flip(0) for prompt in prompts]
        said = [torch.tensor(row) for prompt in prompts for row in self._responses[str(prompt.prompt.content)]]
        shown = pad_sequence(asked, batch_first=True, padding_value=-1).flip(1)  # [B, P], padded on the left
        written = pad_sequence(said, batch_first=True, padding_value=-1).view(b, k, -1)  # [B, K, T]
        mask = written >= 0
        texts = [policy.decode(row.tolist()) for row in said]
        rollouts = Rollouts(
            prompts=tuple(prompt.prompt for prompt in prompts),
            occurrences=torch.tensor([prompt.occurrence for prompt in prompts]),
            prompt_tokens=shown.where(shown >= 0, policy.pad_id),
            prompt_mask=shown >= 0,
            response_tokens=written.where(mask, policy.pad_id),
            response_mask=mask,
            loss_mask=mask,
            sampling_logps=torch.zeros(written.shape),
            finished=torch.tensor([row[-1].item() in policy.eos_ids for row in said]).view(b, k),
            texts=tuple(tuple(texts[i : i + k]) for i in range(0, b * k, k)),
            policy_version=stream.rollout,
        )
        return replace(rollouts, sampling_logps=policy(rollouts).token_logps.where(mask, 0.0))


@final
class Observer(RolloutCallback):
    """Prompts and advantages of a rollout in its order, loss and gradient of its one step."""

    prompts: list[str]
    advantages: Tensor | None = None
    loss: float
    gradient: dict[str, Tensor]

    def on_rollout_end(
        self, trainer: Trainer, module: LightningModule, rollouts: Any, annotation: Any, batch: Any, diagnostics: Any
    ) -> None:
        self.prompts, self.advantages = [str(prompt.content) for prompt in rollouts.prompts], batch.advantages

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        assert isinstance(pl_module.policy, CausalPolicy)
        self.gradient = gradient_of(pl_module.policy.model)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: AlignmentBatch, batch_idx: int) -> None:
        self.loss = float(outputs["loss"])


def gradient_of(model: nn.Module) -> dict[str, Tensor]:
    """A copy, by the parameter's name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
