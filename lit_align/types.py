"""The vocabulary: what flows through one rollout, and the roles that make it flow.

Axes: ``B`` prompts, ``K`` responses per prompt, ``P`` prompt tokens (padded on the left), ``T`` response tokens (padded on
the right). A field declared with ``axes("BKT")`` is a tensor with exactly those axes, and a record checks on construction
that every letter has one size, so that a transposed or misaligned tensor fails where it is made. Log-probabilities are in
nats, at the policy's temperature.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from enum import IntEnum
from typing import Any, Literal, NotRequired, Protocol, Self, TypedDict, final

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

Message = Mapping[str, str]
"""One turn of a chat: ``{"role": ..., "content": ...}``."""

Diagnostics = dict[str, Tensor]
"""Detached quantities keyed ``group/quantity``: one per response ``[B, K]``, pair ``[B, K, K]`` or prompt ``[B]``, or one ``[]``."""


class UserError(Exception):
    """A mistake in a config or a file: the message says what was expected, what came and what to do; the command line
    shows it without a stack trace."""


def axes(letters: str, **options: Any) -> Any:
    """A dataclass field that holds a tensor with these axes; ``"BK|BKT"`` allows either."""
    return field(metadata={"axes": tuple(letters.split("|"))}, **options)


class TensorRecord:
    """A frozen dataclass of tensors, and of tensors by name: moved and sliced as one. Other fields stay as they are."""

    __slots__ = ()

    def __post_init__(self) -> None:
        sizes: dict[str, tuple[int, str]] = {}
        for name, tensor, letters in self.tensors():
            if tensor.dim() != len(letters):
                raise ValueError(f"{type(self).__name__}.{name} should have axes {letters or '()'}, got shape {tuple(tensor.shape)}.")
            for letter, size in zip(letters, tensor.shape, strict=True):
                known, where = sizes.setdefault(letter, (size, name))
                if size != known:
                    raise ValueError(f"{type(self).__name__}.{name} has {letter} = {size}, but {where} has {letter} = {known}.")

    def tensors(self) -> list[tuple[str, Tensor, str]]:
        """Name, tensor and axes of every tensor field that is filled; one of a field of several is ``field.name``."""
        found = []
        for f in fields(self):  # pyright: ignore[reportArgumentType]
            value, allowed = getattr(self, f.name), f.metadata.get("axes", ())
            several = value.items() if allowed and isinstance(value, Mapping) else [("", value)]
            for name, tensor in several:
                if isinstance(tensor, Tensor):
                    letters = next((a for a in allowed if len(a) == tensor.dim()), allowed[0])
                    found.append((f"{f.name}.{name}" if name else f.name, tensor, letters))
        return found

    def map_tensors(self, change: Callable[[Tensor, str], Tensor]) -> Self:
        """The same record with ``change(tensor, axes)`` applied to every tensor."""
        changed: dict[str, Any] = {}
        for path, tensor, letters in self.tensors():
            name, _, part = path.partition(".")
            new = change(tensor, letters)
            changed[name] = {**changed.get(name, {}), part: new} if part else new
        return replace(self, **changed)  # pyright: ignore[reportArgumentType]

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Self:
        """The same record on ``device``."""
        return self.map_tensors(lambda tensor, _: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        """The same record in pinned memory."""
        return self.map_tensors(lambda tensor, _: tensor.pin_memory())


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer that the data have: a text, or the turns that follow a conversation; the assistant's end it.

    ``score`` is its label, larger is better; None where it has none. ``conversation``: the prompt's own assistant turns were written
    down to be learnt as well, as in a file of whole conversations.
    """

    content: str | tuple[Message, ...]
    score: float | None = 1.0
    conversation: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """One thing to answer: plain text, or chat messages that the tokenizer's template will join.

    ``id`` is a hash of (dataset name, row number in its source before any filter): it keys the sampling noise and the labels,
    so equal row numbers of two datasets share neither. ``dataset`` is that name where a run mixes several, else empty. ``answers``
    are those of fixed data, of which online runs read none.
    """

    id: int
    content: str | tuple[Message, ...]
    reference: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    answers: tuple[Answer, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedPrompt:
    """A prompt as the policy will read it. ``occurrence`` counts how often it came before in the same rollout."""

    prompt: Prompt
    tokens: tuple[int, ...]
    occurrence: int = 0


@dataclass(frozen=True, slots=True)
class Stream:
    """Which noise to draw: sampling is a pure function of this, the prompt, its occurrence, k, the step and the token."""

    seed: int
    name: str
    rollout: int

    @property
    def version(self) -> int | None:
        """How many rollouts the policy that answers had been trained on; None where the stream does not say: it is not that of training."""
        return self.rollout if self.name == "train" else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollouts(TensorRecord):
    """What the policy said: ``K`` responses to each of ``B`` prompts."""

    prompts: tuple[Prompt, ...]
    occurrences: Tensor = axes("B")
    prompt_tokens: Tensor = axes("BP")
    prompt_mask: Tensor = axes("BP")  # bool
    response_tokens: Tensor = axes("BKT")
    response_mask: Tensor = axes("BKT")  # bool; True for the EOS token and nothing after it
    loss_mask: Tensor = axes("BKT")  # bool; the response mask, unless a tool's or a template's turn is inside
    sampling_logps: Tensor = axes("BKT")  # float32, log pi_t of each token; 0 outside the mask
    finished: Tensor = axes("BK")  # bool; ended by itself
    texts: tuple[tuple[str, ...], ...]
    policy_version: int  # rollouts that had been trained on before this one was drawn
    # Where an external engine drew the tokens: float32, what it says of them, 0 outside the mask. The same is in ``sampling_logps``
    # until a training forward has read the responses.
    engine_logps: Tensor | None = axes("BKT", default=None)
    engine_staleness: int = 0  # how many rollouts the engine's weights were behind ``policy_version``
    max_engine_factor: float = math.inf  # ceiling of pi_t / the engine's probability, by which losses are multiplied

    def rows(self, index: Sequence[int]) -> "Rollouts":
        """These prompts only, in this order."""
        picked = self.map_tensors(lambda tensor, _: tensor[list(index)])
        return replace(picked, prompts=tuple(self.prompts[i] for i in index), texts=tuple(self.texts[i] for i in index))


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotation(TensorRecord):
    """What the annotator said about it. Larger scores are better; an invalid score is 0 with ``valid`` False.

    ``parts`` have the same names in every answer of one annotator: what is logged of them is gathered from all ranks.
    """

    scores: Tensor = axes("BK")  # float32
    valid: Tensor = axes("BK")  # bool
    preferences: Tensor | None = axes("BKK", default=None)  # P(i beats j); NaN where not asked and on the diagonal
    seen_first: Tensor | None = axes("BKK", default=None)  # the same as said with i shown before j
    mass: Tensor | None = axes("BK", default=None)  # probability that a judge's model gave to the verdicts it could choose from
    parts: Mapping[str, Tensor] = axes("BK", default_factory=dict)  # what scores were made of, logged as reward/<name>; NaN where unknown
    annotator_version: int = 0

    def rows(self, index: Sequence[int]) -> "Annotation":
        """Of these prompts only, in this order."""
        return self.map_tensors(lambda tensor, _: tensor[list(index)])


class Source(IntEnum):
    """Where the answers of a row come from, and who labels them."""

    FIXED = 0
    """Both are the data's."""
    RELABEL = 1
    """The answers are the data's; the policy labels them anew at every step."""
    FRESH_SELF = 2
    """The policy answers, and labels its answers at every step: no annotator is asked."""
    FRESH_ANNOTATED = 3
    """The policy answers, the annotator labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignmentBatch(TensorRecord):
    """What an algorithm trains on. Fields with a default are None until someone needs them."""

    prompt_tokens: Tensor = axes("BP")
    prompt_mask: Tensor = axes("BP")  # bool
    response_tokens: Tensor = axes("BKT")
    response_mask: Tensor = axes("BKT")  # bool
    loss_mask: Tensor = axes("BKT")  # bool
    prompt_ids: Tensor = axes("B")
    scores: Tensor = axes("BK")
    valid: Tensor = axes("BK")  # bool; False counts in neither numerator nor normaliser
    finished: Tensor = axes("BK")  # bool
    optimizer_steps: Tensor = axes("B")  # which step of the rollout the row belongs to
    preferences: Tensor | None = axes("BKK", default=None)
    sampling_logps: Tensor | None = axes("BKT", default=None)
    reference_logps: Tensor | None = axes("BKT", default=None)
    values: Tensor | None = axes("BKT", default=None)  # what a critic expected before each token, in units of reward; 0 outside the mask
    advantages: Tensor | None = axes("BK|BKT", default=None)
    returns: Tensor | None = axes("BKT", default=None)  # what it should have expected
    weights: Tensor | None = axes("BK", default=None)
    targets: Tensor | None = axes("BK", default=None)  # nats; what an objective compares response log-probs with
    pairs: Tensor | None = axes("BKK", default=None)  # P(i should beat j) of each pair to train on; NaN where there is none
    source: Tensor | None = axes("B", default=None)  # a `Source`, int64; None where all rows have the same
    uniforms: Tensor | None = axes("B", default=None)  # in [0, 1), to draw labels with
    baselines: Tensor | None = axes("B", default=None)  # what the losses of a row's pairs are measured from
    engine_logps: Tensor | None = axes("BKT", default=None)  # see Rollouts
    engine_factors: Tensor | None = axes("BK", default=None)  # what a response's loss is multiplied by for another engine having drawn it
    # Valid responses (tokens, pairs) of the optimizer step over all ranks and micro-batches, divided by world size x
    # accumulation, because Lightning and DDP divide by these once more. Set by the loader after ``prepare``.
    response_normaliser: Tensor | None = axes("", default=None)
    token_normaliser: Tensor | None = axes("", default=None)
    pair_normaliser: Tensor | None = axes("", default=None)
    annotator_version: int = 0  # whose scores these are: no statistic is of two versions
    engine_staleness: int = 0  # see Rollouts
    max_engine_factor: float = math.inf  # see Rollouts
    dropout_seed: int | None = None  # a function of (seed, rollout, micro-batch, rank)

    @classmethod
    def of(cls, rollouts: Rollouts, annotation: Annotation, optimizer_steps: Tensor | None = None) -> "AlignmentBatch":
        """Rollouts and what was said about them, as an algorithm's input."""
        shared = {f.name for f in fields(Rollouts)} & {f.name for f in fields(cls)}
        device = rollouts.response_tokens.device
        ids = torch.tensor([prompt.id for prompt in rollouts.prompts], device=device)
        return cls(
            **{name: getattr(rollouts, name) for name in shared},
            prompt_ids=ids,
            scores=annotation.scores.to(device),
            valid=annotation.valid.to(device),
            preferences=None if annotation.preferences is None else annotation.preferences.to(device),
            annotator_version=annotation.annotator_version,
            optimizer_steps=torch.zeros_like(ids) if optimizer_steps is None else optimizer_steps.to(device),
        )

    def rows(self, index: Tensor) -> "AlignmentBatch":
        """These prompts only, in this order, without the columns that are padding in all of them."""
        picked = self.map_tensors(lambda tensor, letters: tensor[index] if letters.startswith("B") else tensor)
        start = int(picked.prompt_mask.any(0).int().argmax())
        end = max(int(picked.response_mask.any(0).any(0).sum()), 1)
        trim = {"P": slice(start, None), "T": slice(0, end)}
        return picked.map_tensors(lambda tensor, letters: tensor[..., trim[letters[-1]]] if letters[-1:] in trim else tensor)

    @property
    def used(self) -> Tensor:
        """Which responses an objective can depend on, bool ``[B, K]``: the valid ones with a weight, and in a pair, where
        ``prepare`` made weights or pairs."""
        used = self.valid if self.weights is None else self.valid & (self.weights != 0)
        if self.pairs is None:
            return used
        paired = ~self.pairs.isnan()
        return used & (paired.any(-1) | paired.any(-2))

    @property
    def sources(self) -> Tensor:
        """`source` of every row ``[B]``, whether it is filled or not."""
        if self.source is not None:
            return self.source
        return torch.full_like(self.optimizer_steps, Source.FIXED if self.sampling_logps is None else Source.FRESH_ANNOTATED)

    @property
    def sampled(self) -> Tensor:
        """Which rows the policy answered, bool ``[B]``; ``sampling_logps`` of the others are 0."""
        return self.sources >= Source.FRESH_SELF

    @property
    def sampling_response_logps(self) -> Tensor:
        """``log pi_t(y|x)`` in nats, ``[B, K]``."""
        return self._summed(self.sampling_logps, "sampling_logps")

    @property
    def reference_response_logps(self) -> Tensor:
        """``log pi_ref(y|x)`` in nats, ``[B, K]``."""
        return self._summed(self.reference_logps, "reference_logps")

    def above_sampling(self, token_logps: Tensor) -> Tensor:
        """``log pi_theta - log pi_t`` of every token in nats, 0 outside the loss mask, ``[B, K, T]``."""
        return self._masked(token_logps - self._filled(self.sampling_logps, "sampling_logps"))

    def above_reference(self, token_logps: Tensor) -> Tensor:
        """``log pi_theta - log pi_ref`` of every token in nats, 0 outside the loss mask, ``[B, K, T]``."""
        return self._masked(token_logps - self._filled(self.reference_logps, "reference_logps"))

    def _summed(self, token_logps: Tensor | None, name: str) -> Tensor:
        return self._masked(self._filled(token_logps, name)).sum(-1)

    def _masked(self, token_values: Tensor) -> Tensor:
        return token_values.where(self.loss_mask, 0.0)

    def _filled(self, token_logps: Tensor | None, name: str) -> Tensor:
        if token_logps is None:
            raise ValueError(f"This batch has no {name}: sampled data has them, and `needs` must ask for a reference.")
        return token_logps


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyOutput(TensorRecord):
    """What a forward pass of the policy gives an objective."""

    token_logps: Tensor = axes("BKT")  # float32
    vocabulary_logps: Tensor | None = axes("BKTV", default=None)  # of every token that could stand there, where it was asked for
    kl: Tensor | None = axes("BKT", default=None)  # nats at every token, exact, in the direction of `Needs.kl`; 0 outside the response
    values: Tensor | None = axes("BKT", default=None)  # float32, of a value head or a critic: expected before each token
    entropy: Tensor | None = axes("BKT", default=None)  # float32, nats of the choice that each token is; only where it is asked for


@dataclass(frozen=True, slots=True)
class Samples:
    """Held-out responses and, where there is an annotator for them, its scores; ``datasets`` names those to report one by one."""

    rollouts: Rollouts
    annotation: Annotation | None
    datasets: tuple[str, ...] = ()

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Samples":
        """The same samples on ``device``."""
        annotation = self.annotation and self.annotation.to(device, non_blocking)
        return replace(self, rollouts=self.rollouts.to(device, non_blocking), annotation=annotation)


class StepOutput(TypedDict):
    """What callbacks may read after a micro-batch: ``loss`` with gradient, everything else detached."""

    loss: Tensor
    losses: Tensor  # [B, K] or [B, K, T]
    logps: Tensor  # [B, K]
    weights: NotRequired[Tensor]  # [B, K]
    diagnostics: Diagnostics


class RewardStepOutput(TypedDict):
    """The same of a reward model, which has scores for log-probs."""

    loss: Tensor
    losses: Tensor  # [B, K, K]
    scores: Tensor  # [B, K]
    diagnostics: Diagnostics


KL = Literal["", "policy_reference", "reference_policy"]
"""From which distribution of the next token to which: KL(first || second); empty for none."""


@dataclass(frozen=True, slots=True)
class Needs:
    """What an algorithm, or a callback, wants: log-probs of the reference; samples of exactly the policy being trained
    (``on_policy``: one optimizer step per rollout, where anything is sampled); at least so many ``responses`` per prompt; log-probs
    of the policy that ``sampled``, which fixed data don't have.

    Four are of algorithms alone. ``self_labels``: it draws the labels of rows that `Source` leaves to the policy. ``kl``: the
    exact divergence of the next token at every token of a training step, in this direction, for which the reference reads the
    micro-batch once more. ``values`` of the rollout's tokens by the critic. ``entropy`` of every token's choice in a training step.
    """

    reference: bool = False
    on_policy: bool = False
    responses: int = 1
    sampled: bool = False
    self_labels: bool = False
    kl: KL = ""
    values: bool = False
    entropy: bool = False

    def __or__(self, other: "Needs") -> "Needs":
        return Needs(*(max(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))


class PromptSource(ABC):
    """Where prompts come from: `IndexedPrompts`, a `PromptStream`, or a mixture of such.

    ``name`` is the dataset's: half of every prompt's id, so that two sources of one run need two.
    """

    name: str = ""

    @abstractmethod
    def __iter__(self) -> Iterator[Prompt]:
        """Every prompt once, in the source's order."""


class IndexedPrompts(PromptSource):
    """An ordered, sized collection of prompts, read through one permutation after another."""

    @abstractmethod
    def __len__(self) -> int:
        """How many prompts there are."""

    @abstractmethod
    def __getitem__(self, index: int) -> Prompt:
        """Prompt number ``index``."""

    @final
    def __iter__(self) -> Iterator[Prompt]:
        """Every prompt once, in order."""
        return (self[index] for index in range(len(self)))


class PromptStream(PromptSource):
    """Prompts that can only be read from the first one on, of a number that nobody knows.

    They come in blocks of ``shuffle_buffer`` prompts, each shuffled before it is given out; 0 leaves them in order.
    ``max_prompts`` is where a reading ends, None at the end of the source.
    """

    shuffle_buffer: int = 0
    max_prompts: int | None = None

    @abstractmethod
    def read(self, start: int = 0) -> Iterator[Prompt]:
        """One reading from prompt number ``start`` on."""

    @final
    def __iter__(self) -> Iterator[Prompt]:
        """One reading."""
        return self.read()


class Annotator(ABC):
    """Labels responses: a rule, a reward model, an LLM judge, an API.

    ``identity`` says which of its kind it is (a function's or a model's name), so that no label of another one is taken for its
    own; ``version`` grows when it learns. One that ``waits`` for a network is asked in another thread while the next responses
    are sampled, about one chunk of them at a time. ``log_odds``: the difference of two of its scores is meant to be the log of the odds
    that the first response is better, as that of a reward model is.
    """

    identity: str = ""
    version: int = 0
    waits: bool = False
    log_odds: bool = False

    @abstractmethod
    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Score every response of these rollouts; what can't be scored is invalid, never fatal."""

    @property
    def learns(self) -> bool:
        """Whether it may change: it says what `learn` does, or one that it asks does."""
        return type(self).learn is not Annotator.learn

    def learn(self, rollouts: Rollouts, ask: "Ask") -> Mapping[str, float]:
        """Once per rollout, on every rank, after the last label of it was used. Here ``identity`` and ``version`` may change, and nowhere
        else, so that the labels of one rollout are of one version.

        Args:
            rollouts: this rank's, which has at least one prompt unless it is a part that another annotator gave.
            ask: how to have them labelled by another annotator, so that its labels are kept and never asked for twice.

        Returns:
            What to log of the rollout, the same on every rank.
        """
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What was learnt, the same on every rank: tensors, numbers, texts, lists and dicts only. Nothing for one that doesn't learn."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there; called after ``setup``.

        Raises:
            UserError: if there is a state and this annotator can't have one.
        """
        if state:
            raise UserError(
                f"The checkpoint holds what an annotator has learnt, and {type(self).__name__} learns nothing. Resume with the annotator "
                "that the run was started with, or start a new run from the exported policy."
            )

    def setup(self, device: torch.device) -> None:  # noqa: B027
        """Load what is heavy, once per process."""

    def close(self) -> None:  # noqa: B027
        """Let go of it."""


Ask = Callable[[Annotator, Rollouts], Annotation]
"""Labels of some rollouts by an annotator, on the CPU."""


class JudgeBackend(ABC):
    """A language model that a judge asks: it says how likely each of a few answers is. ``identity`` says which model it is,
    ``waits`` whether a judge that asks it is an annotator that waits."""

    identity: str = ""
    waits: bool = False

    @abstractmethod
    def option_logps(self, prompts: Sequence[str | Sequence[Message]], options: Sequence[str]) -> Tensor:
        """How likely the model is to continue each prompt with each option, in nats, ``[N, options]`` in float32 on the CPU.

        A text is continued as it is, messages by the model's own turn. The events exclude each other, so that probabilities add up
        to at most 1: where an option begins another one ("1" and "10"), the shorter stands for itself not followed by the
        rest. A prompt that the model can't read gets NaN.
        """

    def setup(self, device: torch.device) -> None:  # noqa: B027
        """Load what is heavy, once per process."""

    def close(self) -> None:  # noqa: B027
        """Let go of it."""


class TextModel(nn.Module, ABC):
    """A model that reads prompts and answers: what the data plane may know of whatever is trained."""

    bos_id: int | None
    pad_id: int
    context_length: int | None  # of prompt and answer together

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Eval mode without gradient; every submodule's own mode comes back.

        Weights that FSDP2 has spread over ranks are whole inside, on all of them, so that each may take as many forwards as its
        responses are long. Entering is then a collective: all ranks do it as often.
        """
        modes = [(module, module.training) for module in self.modules()]
        spread = any(isinstance(parameter, DTensor) for parameter in self.parameters())  # not so in a context inside this one
        shards = [module for module in self.modules() if isinstance(module, FSDPModule)] if spread else []
        self.eval()
        try:
            for shard in shards:
                shard.set_reshard_after_forward(False, recurse=False)
                shard.unshard()
            with torch.no_grad():
                yield
        finally:
            for shard in shards:
                shard.set_reshard_after_forward(True, recurse=False)
                shard.reshard()
            for module, training in modes:
                module.training = training

    @abstractmethod
    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of a prompt, through the chat template where it has messages."""

    @abstractmethod
    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of a whole answer to ``prompt``, to be read after those of the prompt; of a policy ended by EOS or, after messages, by
        the end of turn of the chat template."""

    @abstractmethod
    def encode_turns(self, prompt: Prompt, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """The same of the turns that follow a prompt of messages, and which tokens the assistant says: of a policy the last is the end
        of its last turn."""

    @abstractmethod
    def save(self, folder: str) -> None:
        """Write a folder from which the model can be loaded."""


class Policy(TextModel):
    """A causal language model that can be scored. One ``temperature`` serves sampling, training and the reference; with
    ``reference_offload`` the reference's weights wait on the CPU while it does not score."""

    reference_offload: bool = False
    layouts: tuple[str, ...] = ()  # in which forwards are computed, as `choose_layouts` found; kept in checkpoints
    decoding: str = ""  # the way in which tokens are read on, as was found when it first sampled; kept in checkpoints
    temperature: float
    eos_ids: frozenset[int]
    special_ids: frozenset[int]  # tokens that `decode` leaves out

    @abstractmethod
    def forward(self, batch: "AlignmentBatch | Rollouts", vocabulary: bool = False, entropy: bool = False) -> PolicyOutput:
        """Log-probs of the response tokens, with gradient; if asked for, of the whole ``vocabulary`` at each of them, and entropies.
        Values where there is a value head. 0 outside the response mask, in which a response may have no token."""

    def choose_layouts(self) -> None:
        """Find out how this model may be computed without another result, and keep it in ``layouts``; those of a resumed run stay where
        they are still right. Once per fit, on every rank, where the weights are in their place and under the precision of training."""

    @property
    def value_head(self) -> nn.Module | None:
        """What reads values off the policy's own hidden states, where it has one."""
        return None

    @abstractmethod
    def next_token_logits(self, tokens: Tensor, mask: Tensor, cache: Any = None) -> tuple[Tensor, Any]:
        """Logits ``[N, V]`` in float32, divided by the temperature, of the token that follows ``tokens`` ``[N, S]``.

        ``mask`` ``[N, L]`` covers everything seen so far, ``tokens`` included. ``cache`` is what the last call returned; its
        ``reorder_cache(index)`` repeats, reorders or drops rows.
        """

    @abstractmethod
    def decode(self, tokens: Sequence[int]) -> str:
        """Text of response tokens, without special tokens."""

    @abstractmethod
    def make_reference(self) -> "Reference":
        """The policy as it was before training, whatever checkpoint was resumed."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Names and values as `save` would write them, without gradient, for an engine that has loaded the same model. They are the
        policy's own tensors wherever nothing has to be merged: copy them, never write to them. On all ranks inside `inference`.

        Raises:
            UserError: if this policy can't give them.
        """
        raise UserError(
            f"{type(self).__name__} gives its weights to no engine: it has no `weights`. Sample with lit_align.generation.CacheSampler."
        )

    def rounded(self, copy: "Policy | None" = None) -> "Policy":
        """The policy as it is now with its weights rounded to bfloat16, an adapter merged into them: to be sampled from, not trained. On
        all ranks inside `inference`.

        Args:
            copy: what an earlier call returned; it is brought up to date in place, and returned.

        Raises:
            UserError: if this policy can't be copied, or has no float32 weights to round.
        """
        raise UserError(
            f"{type(self).__name__} can't be copied to bfloat16: it has no `rounded`. Sample with lit_align.generation.CacheSampler."
        )


class Critic(nn.Module, ABC):
    """Expects a reward: a model beside the policy that is trained with it."""

    @abstractmethod
    def forward(self, batch: AlignmentBatch) -> Tensor:
        """What is expected before every response token, in units of reward, float32 with gradient, ``[B, K, T]``."""

    @abstractmethod
    def check(self, policy: Policy) -> None:
        """Refuse a policy whose tokens this critic can't read.

        Raises:
            UserError: that says what differs.
        """


class Reference(ABC):
    """The policy that KL is measured against; neither optimizer nor strategy sees it, nor does a checkpoint unless it moves."""

    policy: Policy

    @abstractmethod
    def token_logps(self, batch: AlignmentBatch) -> Tensor:
        """``log pi_ref`` of every response token in float32, ``[B, K, T]``, without gradient."""

    @abstractmethod
    def vocabulary_logps(self, batch: AlignmentBatch) -> Tensor:
        """The same of every token that could stand there, ``[B, K, T, V]``; anything outside the response."""


class Sampler(ABC):
    """Turns prompts into responses of the current policy, or of one that is at most ``max_staleness`` rollouts older."""

    max_new_tokens: int
    max_staleness: int = 0

    @abstractmethod
    def sample(self, policy: Policy, prompts: Sequence[EncodedPrompt], responses_per_prompt: int, stream: Stream) -> Rollouts:
        """Draw ``responses_per_prompt`` responses to each prompt. The caller sets eval mode and no_grad."""

    def setup(self) -> None:  # noqa: B027
        """Before the first response of a run: forget which policy was sampled from last."""

    def close(self) -> None:  # noqa: B027
        """Let go of what is heavy, until somebody samples again."""


class Aligner(Protocol):
    """What the data plane may know of a LightningModule."""

    @property
    def text_model(self) -> TextModel:
        """What is trained and reads the data."""
        ...

    @property
    def policy(self) -> Policy:
        """The same, where it can be sampled from.

        Raises:
            UserError: if it can't.
        """
        ...

    @property
    def needs(self) -> Needs:
        """What the algorithm wants computed."""
        ...

    def prepare_rollout(self, batch: AlignmentBatch, needs: Needs, chunk_prompts: int) -> tuple[AlignmentBatch, Diagnostics]:
        """Fill in what ``needs`` asks for, ``chunk_prompts`` prompts at a time, then the algorithm's own columns; once per
        rollout, without gradient."""
        ...

    def log_rollout(self, metrics: Mapping[str, float | Tensor]) -> None:
        """Log these at the start of the epoch, with the rollout's number as x-axis."""
        ...


class RolloutCallback(Callback):
    """A Lightning callback that also hears of the rollout phase. ``needs`` asks for rollout statistics and adds no work to a
    training step. What it learns it logs by ``module.log_rollout({"group/quantity": value})``."""

    needs: Needs = Needs()

    def on_rollout_start(self, trainer: Trainer, module: LightningModule, rollout: int, total: int) -> None:
        """Before the first response of rollout number ``rollout``; ``total`` responses are coming on this rank, and more where the
        data look for prompts with spread."""

    def on_rollout_progress(self, trainer: Trainer, module: LightningModule, sampled: int, annotated: int) -> None:
        """After each chunk is sampled, and again after it is annotated: responses so far on this rank, which may be more than
        ``total``."""

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """After ``prepare``: everything that this rank will train on, and what the algorithm says about it.

        Of fixed and fresh rows in one rollout, these are the fresh ones. A rank may have none: ``B`` is 0 there, and it is told all the
        same, so that a callback may compare ranks."""
