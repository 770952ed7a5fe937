"""Which layouts a model reads exactly: found by trying them, once, on the model as it is trained.

A layout that a model does not support seldom raises: it gives other numbers. So each is compared with one text at a time, without
padding, mask, positions or cache: every log-prob, and the gradient at the embedding of every token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from lit_align.functional.distributed import global_sum
from lit_align.functional.logprobs import token_logps
from lit_align.models.dropout import without_dropout
from lit_align.models.layouts import Texts
from lit_align.models.reading import CHUNKED, PICKED, ResponseReader
from lit_align.models.sharding import is_sharded
from lit_align.models.shortage import out_of_memory
from lit_align.models.windows import CUT, small_copy, window_to_cross
from lit_align.types import UserError

LENGTHS = ((7, (6, 2)), (4, (1, 8)), (2, (1, 0)))  # of prompts and their responses; two trees of a row, as far as the context goes


@final
@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far an exact layout may be from one text at a time, which is rounding: ``logps`` in nats of any token, ``gradient`` relative."""

    logps: float
    gradient: float


TIGHT = Tolerance(1e-3, 1e-3)
"""float32: rounding was 1e-4 nats and less in 26 architectures, the mildest mistake far above it."""
LOOSE = Tolerance(0.5, 0.2)
"""bfloat16 keeps 8 bits: logits differ by some 0.04 for another shape of the same sum, a wrong mask by several nats. What is finer is
seen by a small copy in float32."""


@final
@dataclass(frozen=True, slots=True)
class Said:
    """Log-probs of all response tokens ``[M]``, and a gradient at the embedding of each id that occurs ``[ids, H]``."""

    logps: Tensor
    gradient: Tensor

    def agrees(self, other: "Said", tolerance: Tolerance) -> bool:
        """Whether what was said is the same but for rounding; never of NaN."""
        near = bool((self.logps - other.logps).abs().max() <= tolerance.logps)
        return near and bool((self.gradient - other.gradient).norm() <= tolerance.gradient * other.gradient.norm())


def probe(model: Any, context_length: int | None) -> tuple[str, ...]:
    """Names of the layouts, and of what may be done to the head, that are exact: an argument of `ResponseReader.read`.

    Every rank calls it, as forwards of sharded weights are collective: all use the same texts and come to the same answer. The global
    generators are left alone, and so is the model.

    Args:
        model: the Hugging Face model in its place, with adapter and checkpointing as it is trained, under the autocast of training.
        context_length: how many tokens it can read, where that is known.

    Raises:
        UserError: if not even padded rows say what one text at a time says.
    """
    window, cut = window_to_cross(model, context_length)
    device = model.get_input_embeddings().weight.device
    low_precision = model.dtype == torch.bfloat16 or torch.is_autocast_enabled(device.type)
    subject = _Subject(model, _texts(model, device, context_length, window), LOOSE if low_precision else TIGHT)
    if not subject.confirms("rows", PICKED):
        if not subject.confirms("rows"):
            raise UserError(
                f"{type(model).__name__} says something else of texts in padded rows than of each text alone, so it can't be trained here. "
                "Its attention should be causal, with nothing kept from one forward to the next."
            )
        return ("rows",)
    sharded = is_sharded(model)
    tried = ("tree",) if sharded else ("prefix", "tree")
    found = [name for name in tried if subject.confirms(name, PICKED)]
    if found and (cut or low_precision):
        found = _confirmed_by_copy(model, device, found)
    return ("rows", *found, PICKED, *([CHUNKED] if not sharded and subject.confirms("rows", PICKED, CHUNKED) else []))


def describe(model: Any, choice: Sequence[str]) -> str:
    """The choice in words."""
    names = {"rows": "padded rows", "prefix": "prompts read once into a cache", "tree": "rows of prompts with their responses"}
    layouts = " or ".join(names[name] for name in names if name in choice)
    head = "at response tokens only" if PICKED in choice else "at every token"
    chunks = " and in chunks where they are many" if CHUNKED in choice else ""
    return f"{type(model).__name__} is trained in {layouts}, whichever costs least for a batch, with logits {head}{chunks}."


@final
class _Subject:
    """A model, texts, and what it says of each of them alone."""

    def __init__(self, model: Any, texts: Texts, tolerance: Tolerance) -> None:
        self.model, self.texts, self.tolerance = model, texts, tolerance
        self.alone = self._said(self._each_alone)

    def confirms(self, *choice: str) -> bool:
        """Whether texts read like this are on every rank what they are alone."""
        reader, some_logits = ResponseReader(self.model), 5 * self.model.config.get_text_config().vocab_size
        try:
            said = self._said(lambda: reader.read(self.texts, _logps, choice, chunk_above=some_logits)[0][0])
            agreed = said.agrees(self.alone, self.tolerance)
        except Exception as error:  # what a model can't do at all, it does not do exactly
            if out_of_memory(error):
                raise
            agreed = False
        return not global_sum(torch.tensor(not agreed, device=self.texts.prompt_tokens.device))

    def _each_alone(self) -> Tensor:
        """The plainest forwards there are, ``[M]``."""
        found = []
        for b, k in self.texts.response_mask.any(-1).nonzero().tolist():
            prompt = self.texts.prompt_tokens[b][self.texts.prompt_mask[b]]
            response = self.texts.response_tokens[b, k][self.texts.response_mask[b, k]]
            logits = self.model(input_ids=torch.cat([prompt, response])[None], use_cache=False).logits[0, len(prompt) - 1 : -1]
            found.append(token_logps(logits, response))
        return torch.cat(found)

    def _said(self, read: Callable[[], Tensor]) -> Said:
        """What is read in train mode without dropout, and the gradient of a sum with a weight for each token."""
        embedded: list[tuple[Tensor, Tensor]] = []

        def keep(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output if output.requires_grad else output.detach().requires_grad_()  # of frozen weights
            embedded.append((inputs[0], output))
            return output

        handle = self.model.get_input_embeddings().register_forward_hook(keep)
        try:
            with _trained(self.model):
                logps = read()
                weights = torch.randn(len(logps), generator=torch.Generator().manual_seed(1)).to(logps)
                gradients = torch.autograd.grad((logps * weights).sum(), [output for _, output in embedded])
        finally:
            handle.remove()
        known = torch.cat([self.texts.prompt_tokens.flatten(), self.texts.response_tokens.flatten()]).unique()
        total = torch.zeros(len(known), gradients[0].shape[-1], dtype=torch.float32, device=logps.device)
        for (tokens, _), gradient in zip(embedded, gradients, strict=True):  # of padding it is 0
            total.index_add_(0, torch.searchsorted(known, tokens.flatten()), gradient.flatten(0, -2).float())
        return Said(logps.detach().float(), total)


def _logps(logits: Tensor, tokens: Tensor) -> Sequence[Tensor]:
    return [token_logps(logits, tokens)]


@contextmanager
def _trained(model: Any) -> Iterator[None]:
    """Train mode with gradient and without dropout; every submodule's own mode and dropout come back."""
    modes = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        with without_dropout(model), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _texts(model: Any, device: torch.device, context_length: int | None, window: int) -> Texts:
    """Random tokens, the same in every process, that cross the window."""
    context = context_length or 64 + 2 * window
    prompts = [min(length + window // 2 * (length > 2), context // 2) for length, _ in LENGTHS]
    responses = [[min(r + window * (r > 2), context - context // 2) for r in group] for _, group in LENGTHS]
    width, length = max(prompts), max(max(group) for group in responses)
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (len(LENGTHS), 3, max(width, length)), generator=generator)
    texts = (
        tokens[:, 0, :width],
        torch.arange(width) >= width - torch.tensor(prompts)[:, None],
        tokens[:, 1:, :length],
        torch.arange(length) < torch.tensor(responses)[..., None],
    )
    return Texts(*(tensor.to(device) for tensor in texts))


def _confirmed_by_copy(model: Any, device: torch.device, names: Sequence[str]) -> list[str]:
    """Those that are also exact for a small copy in float32, whose texts cross its window; none if there can't be a copy."""
    try:
        with torch.autocast(device.type, enabled=False):
            small = small_copy(model).to(device)
            subject = _Subject(small, _texts(small, device, None, CUT), TIGHT)
            return [name for name in names if subject.confirms(name, PICKED)]
    except Exception as error:
        if out_of_memory(error):
            raise
        return []
