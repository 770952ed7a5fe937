"""Reading rows of tokens on, one token at a time: the ways in which a Hugging Face model can, and the probe that chooses one.

Which way serves a model is asked of the model itself: a few seeded tokens are read in each way, and once more as plain single rows.
The first way that says the same is taken. No list of model families has to be right, or to be kept.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, final

import torch
from torch import Tensor
from transformers import DynamicCache

from lit_align.functional.logprobs import token_logps
from lit_align.models.layouts import Texts
from lit_align.models.positions import positions_of
from lit_align.models.shortage import out_of_memory
from lit_align.models.windows import small_copy, window_to_cross
from lit_align.types import UserError

CACHES = ("past_key_values", "cache_params")  # what models call their argument for a cache
PROMPTS, STEPS = (2, 7), 8  # of the probe: lengths of its prompts, and tokens that follow, as far as the context goes
EXACT, ROUNDED = 1e-3, 0.25  # nats per token that rounding may explain, in float32 and in anything less
SAME = 1e-4  # nats on any token that the faster way may be off


class RowCache(ABC):
    """What has been read of some rows, all of which are read on together."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @abstractmethod
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, V]`` of what follows ``tokens`` ``[N, S]``; ``mask`` ``[N, L]`` covers them and everything before them,
        and leaves out all of no row."""

    @abstractmethod
    def reorder_cache(self, index: Tensor) -> None:
        """Go on with these rows ``[N]``, which may be repeated, reordered or left out."""


class PaddedRows(RowCache):
    """Prompts are padded on the left and read once for all their responses; rows that have ended are dropped."""

    steps_are_masked = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        accepted = inspect.signature(type(model).forward).parameters
        self._name = next(name for name in CACHES if name in accepted)
        self._takes_positions, self._takes_keep = "position_ids" in accepted, "logits_to_keep" in accepted
        self.cache: Any = DynamicCache(config=model.config)

    @final
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        options: dict[str, Any] = {self._name: self.cache}
        if self._takes_positions:
            options["position_ids"] = positions_of(mask)[:, -tokens.shape[1] :]
        if self._takes_keep:
            options["logits_to_keep"] = 1
        if self.steps_are_masked or not bool(mask[:, -tokens.shape[1] :].all()):
            options["attention_mask"] = mask.long()
        return self._model(input_ids=tokens, use_cache=True, **options).logits[:, -1]

    @final
    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`."""
        self.cache.reorder_cache(index)


@final
class PromptMaskedRows(PaddedRows):
    """The same, for models that remember a state instead of tokens: a mask is for tokens that are being read, none of a later step's
    is padding, and some would take a longer one for a mask of the state."""

    steps_are_masked = False


@final
class EqualRows(RowCache):
    """Prompts of one length are read together, without padding; otherwise the same."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._parts: list[tuple[Tensor, PromptMaskedRows]] = []  # numbers of the rows of one length, and what is read of them

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        self._parts = self._parts or [(rows, PromptMaskedRows(self._model)) for rows in _of_one_length(mask)]
        said = []
        for rows, cache in self._parts:
            length = int(mask[rows[0]].sum())
            said.append(cache.read(tokens[rows, -length:], mask[rows, -length:]))
        return torch.cat(said)[torch.cat([rows for rows, _ in self._parts]).argsort()]

    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`."""
        kept = []
        for rows, cache in self._parts:
            new, old = (index.unsqueeze(-1) == rows).nonzero().unbind(-1)
            if len(new):
                cache.reorder_cache(old)
                kept.append((new, cache))
        self._parts = kept


@final
class RereadRows(RowCache):
    """Nothing is remembered: whole texts are read again for each token, those of one length together. Slow, and right for any model
    that reads plain rows, wherever it keeps its state."""

    _tokens: Tensor | None = None

    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        self._tokens = tokens if self._tokens is None else torch.cat([self._tokens, tokens], 1)
        parts = list(_of_one_length(mask))
        texts = [self._tokens[rows, -int(mask[rows[0]].sum()) :] for rows in parts]
        said = [self._model(input_ids=text, use_cache=False).logits[:, -1] for text in texts]
        return torch.cat(said)[torch.cat(parts).argsort()]

    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`."""
        assert self._tokens is not None
        self._tokens = self._tokens[index]


WAYS: tuple[type[RowCache], ...] = (PaddedRows, PromptMaskedRows, EqualRows, RereadRows)


def chosen_way(
    model: Any, reserved: frozenset[int], context_length: int | None = None, faster: type[RowCache] | None = None, earlier: str = ""
) -> tuple[type[RowCache], str]:
    """The first of `WAYS` in which ``model`` says of a text what it says of it when it reads it alone and at once; and why, in words.

    Args:
        model: a Hugging Face causal language model, in eval mode.
        reserved: tokens that may mean more to it than a word, such as padding.
        context_length: how many tokens it can read, where that is known.
        faster: taken instead of `PaddedRows` if it also does so, to `SAME`.
        earlier: the name of the way that a run began with; taken if it also does so, since another one rounds differently.

    Raises:
        UserError: if there is none.
    """
    trial, faults = _Trial(model, reserved, context_length), {}
    for way in WAYS:
        faults[way.__name__] = trial.fault(way)
        if not faults[way.__name__]:
            break
    else:
        raise UserError(
            f"{type(model).__name__} can't be sampled from: what it says when it reads token by token is not what it says of the same text "
            f"at once ({', '.join(f'{name} {fault}' for name, fault in faults.items())}). Take another model."
        )
    if way is PaddedRows and faster is not None and not trial.fault(faster):
        way = faster
    drawn = f"Samples of {type(model).__name__} are drawn by"
    if earlier in ("", way.__name__):
        return way, f"{drawn} `{way.__name__}`, as a probe of the model decided."
    kept = next((kept for kept in (faster, *WAYS) if kept is not None and kept.__name__ == earlier), None)
    if kept is not None and not trial.fault(kept):
        return kept, f"{drawn} `{earlier}`, as the run began; a probe of the model would choose `{way.__name__}` now."
    return (
        way,
        f"{drawn} `{way.__name__}`, as a probe of the model decided: `{earlier}`, by which the run began, does not serve it any more.",
    )


@final
class _Trial:
    """A model, texts, and what it says of each of them alone and at once."""

    def __init__(self, model: Any, reserved: frozenset[int], context_length: int | None) -> None:
        window, self.cut = window_to_cross(model, context_length)
        self.model, self.texts = model, probe_texts(model, reserved, context_length, window)
        self.alone = torch.stack([self._alone(b, k) for b in (0, 1) for k in (0, 1)])  # [4, T]
        self.alone[0, self.texts.response_tokens.shape[-1] // 2 + 1 :] = 0.0  # of the text that is dropped

    def fault(self, way: type[RowCache]) -> str:
        """Why it does not serve the model, in words; none where it does."""
        try:
            gaps = self.gaps(way)
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error):
                raise
            return type(error).__name__
        gap = float(gaps.mean(-1).max())  # of a row, as rounding may send a token to another expert
        if not gap <= _tolerance(self.model) or (way not in WAYS and float(gaps.max()) > _same(self.model)):
            return f"{gap:.2g} nats per token"
        rounded = way not in WAYS and next(self.model.parameters()).dtype != torch.float32  # which would hide a misread text
        unsure = (self.cut or rounded) and way is not RereadRows and not _confirmed_by_copy(self.model, way)
        return "in a small copy" if unsure else ""

    def gaps(self, way: type[RowCache]) -> Tensor:
        """How far it is from that when it is read like this, nats of every token ``[4, T]``."""
        return (read_in_steps(way(self.model), self.texts) - self.alone).abs()

    def _alone(self, b: int, k: int) -> Tensor:
        prompt, own = self.texts.prompt_tokens[b][self.texts.prompt_mask[b]], self.texts.response_tokens[b, k]
        logits = self.model(input_ids=torch.cat([prompt, own]).unsqueeze(0), use_cache=False).logits
        return token_logps(logits[0, len(prompt) - 1 : -1], own)


def _confirmed_by_copy(model: Any, way: type[RowCache]) -> bool:
    """Whether it also serves a small copy in float32, whose texts cross its window; not if there can't be a copy."""
    try:
        small = small_copy(model).to(next(model.parameters()).device).eval()
        return not _Trial(small, frozenset(), None).fault(way)
    except Exception as error:
        if out_of_memory(error):
            raise
        return False


def probe_texts(model: Any, reserved: frozenset[int], context_length: int | None, window: int) -> Texts:
    """Two texts after each of two prompts of different lengths, seeded and made of ordinary tokens. The longer prompt crosses the window by
    itself, and the texts after the shorter one on their way, as far as the context goes."""
    device = next(model.parameters()).device
    words = torch.tensor([i for i in range(model.get_input_embeddings().weight.shape[0]) if i not in reserved] or [0])
    context = context_length or 64 + 2 * window
    steps = min(STEPS + window // 2, context // 2)
    width = min(PROMPTS[1] + window, context - steps)
    shorter = max(1, min(PROMPTS[0] + window // 2, width - 1))  # in any context, so that there is padding
    drawn = words[torch.randint(len(words), (2, width + 2 * steps), generator=torch.Generator().manual_seed(0))].to(device)
    return Texts(
        prompt_tokens=drawn[:, :width],  # padded with words: what is read of them shows, while a padding token may be embedded as 0
        prompt_mask=torch.arange(width, device=device) >= torch.tensor([[width - shorter], [0]], device=device),
        response_tokens=drawn[:, width:].view(2, 2, steps),
        response_mask=torch.ones(2, 2, steps, dtype=torch.bool, device=device),
    )


def read_in_steps(cache: RowCache, texts: Texts) -> Tensor:
    """Log-probs of the four responses ``[4, T]`` as a sampler reads them: prompts together and once, then the responses token by token,
    until halfway the first of them is dropped; 0 from there on."""
    own = texts.response_tokens.flatten(0, 1)
    said = torch.zeros(own.shape, device=own.device)
    rows = torch.arange(len(own), device=own.device)
    logits = cache.read(texts.prompt_tokens, texts.prompt_mask)[rows // 2]
    mask = texts.prompt_mask[rows // 2]
    cache.reorder_cache(rows // 2)
    for step in range(own.shape[1]):
        if step > 0:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            logits = cache.read(own[rows, step - 1].unsqueeze(-1), mask)
        said[rows, step] = token_logps(logits, own[rows, step])
        if step == own.shape[1] // 2:
            rows, mask = rows[1:], mask[1:]
            cache.reorder_cache(torch.arange(1, len(own), device=own.device))
    return said


def _of_one_length(mask: Tensor) -> Iterator[Tensor]:
    """Numbers of the rows that are of one length, for each length."""
    lengths = mask.sum(-1)
    return ((lengths == length).nonzero().squeeze(-1) for length in lengths.unique())


def _same(model: Any) -> float:
    """`SAME` in float32; where more is rounded, another order of the same products may be as far off as any way is."""
    return SAME if _tolerance(model) == EXACT else math.inf


def _tolerance(model: Any) -> float:
    weight = next(model.parameters())
    rounded = weight.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest"
    return ROUNDED if rounded or weight.dtype != torch.float32 else EXACT
