"""Fitting a reward model that annotates to comparisons of responses, where it is."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import Optimizer

from lit_align.annotators.reward_model import RewardModelAnnotator
from lit_align.functional.distributed import take_from_first
from lit_align.functional.pairs import all_pairs, win_probabilities
from lit_align.functional.reward_model import bradley_terry_loss
from lit_align.types import Annotation, Rollouts, UserError

OptimizerCallable = Callable[[Iterable[Parameter]], Optimizer]


@final
@dataclass(frozen=True, slots=True)
class Comparisons:
    """Responses to one prompt as the reward model reads them, and which of them was better.

    Args:
        rows: token ids of prompt and response together.
        pairs: (i, j, P(i should beat j)).
    """

    rows: list[list[int]]
    pairs: list[tuple[int, int, float]]

    def state(self) -> dict[str, Any]:
        """For a checkpoint; ``Comparisons(**state)`` gives it back."""
        return asdict(self)


def comparisons_of(student: RewardModelAnnotator, rollouts: Rollouts, annotation: Annotation, soft: bool) -> list[Comparisons]:
    """What a teacher's labels say of the responses to each prompt. No pair are a tie, two rows of the same tokens, and what is invalid
    or can't be read by ``student``.

    Args:
        soft: label a pair with the teacher's probability, not with 1: see `win_probabilities`.
    """
    chosen = all_pairs(annotation.scores, annotation.preferences, annotation.valid)  # [B, K, K]
    sure = win_probabilities(annotation.scores, annotation.preferences) if soft else torch.ones_like(chosen, dtype=torch.float32)
    found = []
    for b, (prompt, texts) in enumerate(zip(rollouts.prompts, rollouts.texts, strict=True)):
        rows = [student.row(prompt, text) for text in texts]
        readable = [student.fits(row) for row in rows]
        pairs = [
            (i, j, float(sure[b, i, j])) for i, j in chosen[b].nonzero().tolist() if readable[i] and readable[j] and rows[i] != rows[j]
        ]
        found.append(Comparisons(rows, pairs))
    return found


def accuracy(student: RewardModelAnnotator, groups: Sequence[Comparisons], prompts_at_once: int) -> float:
    """The share of pairs whose winner the student scores higher; of no pairs, 0."""
    right = []
    with student.host.working() as model:
        for start in range(0, len(groups), prompts_at_once):
            margins, _ = _margins(student, model, groups[start : start + prompts_at_once])
            right += (margins > 0).tolist()
    return sum(right) / max(len(right), 1)


def refit(
    student: RewardModelAnnotator,
    groups: Sequence[Comparisons],
    *,
    optimizer: OptimizerCallable,
    epochs: int,
    prompts_per_step: int,
    head_only: bool,
    seed: int,
) -> dict[str, Tensor]:
    """Minimise the mean `bradley_terry_loss` over the pairs of each step, without dropout, from the weights that the student has.

    Every rank does the same with the same ``groups``; then all take the first one's weights, so that a kernel that adds up in another
    order can't set them apart.

    Returns:
        Copies on the CPU of all weights that were fitted, by name.

    Raises:
        UserError: if a loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    with student.host.working() as model, _trained(model, head_only) as parameters:
        steps = optimizer(parameters.values())
        for _ in range(epochs):
            for index in torch.randperm(len(groups), generator=generator).split(prompts_per_step):
                margins, labels = _margins(student, model, [groups[i] for i in index.tolist()])
                loss = bradley_terry_loss(margins, labels).mean()
                if not loss.isfinite():
                    raise UserError(
                        f"Refreshed: the loss of the reward model became {loss.item()} while it was fitted again. Lower the learning rate "
                        "of its `optimizer`, or fit it less (`epochs`)."
                    )
                steps.zero_grad()
                loss.backward()
                steps.step()
        take_from_first(parameter.detach() for parameter in parameters.values())
        return {name: parameter.detach().to("cpu", copy=True) for name, parameter in parameters.items()}


@contextmanager
def _trained(model: Any, head_only: bool) -> Iterator[dict[str, Parameter]]:
    """Its parameters with gradient, all or those of the head, which are none of the backbone's."""
    named = {name: p for name, p in model.named_parameters() if not (head_only and name.startswith(f"{model.base_model_prefix}."))}
    with torch.enable_grad():
        for parameter in named.values():
            parameter.requires_grad_(True)
        try:
            yield named
        finally:
            for parameter in named.values():
                parameter.requires_grad_(False)
                parameter.grad = None


def _margins(student: RewardModelAnnotator, model: Any, groups: Sequence[Comparisons]) -> tuple[Tensor, Tensor]:
    """Winner's score minus loser's, and label, of every pair, ``[N]`` each. A response in several pairs is read once."""
    places = dict.fromkeys((g, k) for g, group in enumerate(groups) for i, j, _ in group.pairs for k in (i, j))
    position = {place: n for n, place in enumerate(places)}
    values = student.logits(model, [groups[g].rows[k] for g, k in places])
    first = [position[g, i] for g, group in enumerate(groups) for i, _, _ in group.pairs]
    second = [position[g, j] for g, group in enumerate(groups) for _, j, _ in group.pairs]
    labels = [p for group in groups for _, _, p in group.pairs]
    return values[first] - values[second], values.new_tensor(labels)
