"""A reward model that goes on learning from the policy's own samples."""

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from lit_align.annotators.refit import Comparisons, OptimizerCallable, accuracy, comparisons_of, refit
from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.functional.distributed import gathered
from lit_align.types import Annotation, Annotator, Ask, Rollouts, UserError


@final
class Refreshed(Annotator):
    """Scores by a reward model that is fitted again, every so many rollouts, to what a teacher says of the policy's latest samples.

    A reward model is right about responses like those that it was trained on. The policy leaves them, and finds what the model likes by
    mistake; a few labels of what the policy writes *now*, by whoever is too dear to label everything, correct it. That is the online
    refresh of "Training a Helpful and Harmless Assistant", https://arxiv.org/abs/2204.05862, section 4.5.

    After every rollout the teacher labels the responses to some of its prompts, drawn by their ids. After every ``every_n_rollouts`` of
    them the model is fitted to all comparisons in its memory, from the weights that it has, by Bradley-Terry (`refit`). So labels of one
    rollout are of one ``version``; ``identity`` then has a hash of the weights, so that labels are never taken for those of a model that
    learnt something else. The teacher's labels are in the run's journal like all others. On several ranks all learn from the samples
    of all.

    Weights and memory are in the checkpoint: a resumed run goes on as if it had not been stopped.

    Args:
        annotator: the reward model, in float32.
        teacher: labels samples for it: a judge, a rule, `LabelFile` for people.
        every_n_rollouts: how often the model is fitted again.
        prompts_per_rollout: prompts of each rollout, on all ranks together, whose responses the teacher labels.
        memory: prompts to learn from; the oldest are forgotten.
        epochs: passes over the memory each time.
        prompts_per_step: prompts of one optimizer step, whose responses are read at once.
        soft: fit the teacher's probabilities instead of who won: a judge's, or Bradley-Terry's of scores that are a reward model's.
        head_only: fit the classifier's head and leave the backbone as it is.
        optimizer: makes a new optimizer for each fit.
        seed: of the order of the fit, and of which prompts are drawn.

    Raises:
        UserError: if a number is not positive, the reward model is not in float32, there is only one response to a prompt, or a loss is not
            finite; see also `RewardModelAnnotator`.
    """

    def __init__(
        self,
        annotator: RewardModelAnnotator,
        teacher: Annotator,
        every_n_rollouts: int = 10,
        prompts_per_rollout: int = 8,
        memory: int = 512,
        epochs: int = 1,
        prompts_per_step: int = 8,
        soft: bool = False,
        head_only: bool = False,
        optimizer: OptimizerCallable = lambda parameters: torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0),
        seed: int = 0,
    ) -> None:
        numbers = {"every_n_rollouts": every_n_rollouts, "prompts_per_rollout": prompts_per_rollout, "memory": memory}
        for name, number in {**numbers, "epochs": epochs, "prompts_per_step": prompts_per_step}.items():
            if number < 1:
                raise UserError(f"Refreshed: {name} should be at least 1, got {number}.")
        if annotator.host.dtype != "float32":
            raise UserError(
                f"Refreshed: a reward model that learns should have `dtype: float32`, got {annotator.host.dtype}, in which small steps are "
                "rounded away."
            )
        self.annotator, self.teacher = annotator, teacher
        self.every_n_rollouts, self.prompts_per_rollout, self.memory = every_n_rollouts, prompts_per_rollout, memory
        self.epochs, self.prompts_per_step, self.soft, self.head_only = epochs, prompts_per_step, soft, head_only
        self.optimizer, self.seed = optimizer, seed
        self._known: list[Comparisons] = []  # oldest first
        self._new = 0  # how many of them, at the end, came after the last fit
        self._weights: dict[str, Tensor] = {}  # that were fitted, on the CPU
        self._hash = ""

    log_odds = True

    @property
    def identity(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Of the reward model and, once it has learnt, of its weights."""
        return f"Refreshed({self.annotator.identity}{', ' if self._hash else ''}{self._hash})"

    def setup(self, device: torch.device) -> None:
        """Load both models, the reward model with what it has learnt."""
        self.annotator.setup(device)
        self.teacher.setup(device)
        self._restore()

    def close(self) -> None:
        """Forget the models; what was learnt is kept."""
        self.annotator.close()
        self.teacher.close()

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """The reward model's scores ``[B, K]`` on the CPU."""
        if not self.annotator.host.loaded:
            self._restore()
        return replace(self.annotator.annotate(rollouts), annotator_version=self.version)

    def learn(self, rollouts: Rollouts, ask: Ask) -> Mapping[str, float]:
        """Have samples labelled and, where it is time, fit the model to them.

        Returns:
            Of a fit: ``refresh/accuracy``, the share of the comparisons since the last fit that the model had right *before* this one,
            which it had never seen; ``refresh/fitted``, the share of all in its memory that it has right afterwards;
            ``refresh/pairs``, how many these are. And what the teacher has to say, should it learn too.
        """
        said = {f"{name}_teacher": value for name, value in self.teacher.learn(rollouts, ask).items()}
        fresh = self._labelled(rollouts, ask)
        self._known = [*self._known, *fresh][-self.memory :]
        self._new = min(self._new + len(fresh), self.memory)
        if (rollouts.policy_version + 1) % self.every_n_rollouts or not self._new:
            return said
        before = accuracy(self.annotator, self._known[-self._new :], self.prompts_per_step)
        self._weights = refit(
            self.annotator,
            self._known,
            optimizer=self.optimizer,
            epochs=self.epochs,
            prompts_per_step=self.prompts_per_step,
            head_only=self.head_only,
            seed=self.seed + self.version,
        )
        self.version, self._new, self._hash = self.version + 1, 0, _hash(self._weights)
        after = accuracy(self.annotator, self._known, self.prompts_per_step)
        pairs = sum(len(group.pairs) for group in self._known)
        return {"refresh/accuracy": before, "refresh/fitted": after, "refresh/pairs": pairs, **said}

    def state_dict(self) -> dict[str, Any]:
        """Weights that were fitted, the memory, the version."""
        known = [group.state() for group in self._known]
        own = {"version": self.version, "weights": self._weights, "known": known, "new": self._new}
        return {**own, "teacher": self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there.

        Raises:
            UserError: if the weights are of another model.
        """
        if not state:
            return
        self.version, self._weights, self._new = state["version"], dict(state["weights"]), state["new"]
        self._known = [Comparisons(**group) for group in state["known"]]
        self._hash = _hash(self._weights) if self._weights else ""
        self._restore()
        self.teacher.load_state_dict(state["teacher"])

    def _labelled(self, rollouts: Rollouts, ask: Ask) -> list[Comparisons]:
        """Comparisons of some prompts of the rollout of all ranks, the same on each of them and however many they are."""
        if rollouts.response_tokens.shape[1] < 2:
            raise UserError("Refreshed learns from comparisons and needs responses_per_prompt to be at least 2, got 1.")
        here = [(prompt.id, int(n)) for prompt, n in zip(rollouts.prompts, rollouts.occurrences, strict=True)]
        everyones = [key for rank in gathered(here) for key in rank]
        drawn = sorted(everyones, key=lambda key: _lot(self.seed, rollouts.policy_version, key))[: self.prompts_per_rollout]
        mine = [row for row, key in enumerate(here) if key in drawn]
        found = []
        if mine:
            asked = rollouts.rows(mine)
            found = comparisons_of(self.annotator, asked, ask(self.teacher, asked), self.soft)
        known = {key: group for rank in gathered(list(zip([here[row] for row in mine], found, strict=True))) for key, group in rank}
        return [known[key] for key in drawn if known[key].pairs]

    def _restore(self) -> None:
        """Give the model what it has learnt."""
        own = dict(self.annotator.host.model.named_parameters())
        for name, weight in self._weights.items():
            if name not in own or own[name].shape != weight.shape:
                raise UserError(
                    f"Refreshed: the checkpoint has {name} of shape {list(weight.shape)} for the reward model, which "
                    f"{self.annotator.identity} has not. Resume with the reward model that the run was started with."
                )
            own[name].data.copy_(weight)


def _lot(*what: object) -> bytes:
    """Where something stands in an order that nothing else decides."""
    return hashlib.blake2b(repr(what).encode(), digest_size=8).digest()


def _hash(weights: Mapping[str, Tensor]) -> str:
    found = hashlib.blake2b(digest_size=8)
    for name in sorted(weights):
        found.update(name.encode())
        found.update(weights[name].contiguous().flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()
