"""Reading rows of tokens on, one token at a time: the ways in which a Hugging Face model can, and the probe that chooses one.

Which way serves a model is asked of the model itself: a few seeded tokens are read in each way, and once more as plain single rows.
The first way that says the same is taken. No list of model families has to be right, or to be kept.
"""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, final

import torch
from torch import Tensor
from transformers import DynamicCache

from lit_align.models.positions import positions_of
from lit_align.types import UserError

CACHES = ("past_key_values", "cache_params")  # what models call their argument for a cache
PROMPTS, STEPS, DROP = (2, 7), 8, 4  # of the probe: lengths of its prompts, tokens that follow, and the one after which a row is dropped
EXACT, ROUNDED = 1e-3, 0.25  # nats per token that rounding may explain, in float32 and in anything less
SAME = 1e-4  # nats on any token that the faster way may be off


class RowCache(ABC):
    """What has been read of some rows, all of which are read on together."""

    def __init__(self, model: Any) -> None:
        self._model = model

    @abstractmethod
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, V]`` of what follows ``tokens`` ``[N, S]``; ``mask`` ``[N, L]`` covers them and everything before them."""

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


def chosen_way(model: Any, reserved: frozenset[int], faster: type[RowCache] | None = None) -> type[RowCache]:
    """The first of `WAYS` in which ``model`` says of a text what it says of it when it reads it alone and at once.

    Args:
        model: a Hugging Face causal language model, in eval mode.
        reserved: tokens that may mean more to it than a word, such as padding.
        faster: taken instead of `PaddedRows` if it also does so, to `SAME`.

    Raises:
        UserError: if there is none.
    """
    texts, errors = probe_texts(model, reserved), []
    expected = torch.stack([_logps(model(input_ids=text.unsqueeze(0), use_cache=False).logits[0, -STEPS - 1 : -1], text) for text in texts])
    expected[0, DROP + 1 :] = 0.0  # of the text that is dropped
    for way in WAYS:
        try:
            gaps = (read_in_steps(way(model), texts) - expected).abs().mean(-1)  # [4]; rounding may send a token to another expert
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError) as error:
            errors.append(f"{way.__name__} {type(error).__name__}")
            continue
        if float(gaps.max()) <= _tolerance(model):
            return faster if way is PaddedRows and faster is not None and _serves(faster, model, texts, expected) else way
        errors.append(f"{way.__name__} {float(gaps.max()):.2g} nats per token")
    raise UserError(
        f"{type(model).__name__} can't be sampled from: what it says when it reads token by token is not what it says of the same text at "
        f"once ({', '.join(errors)}). Take another model."
    )


def _serves(faster: type[RowCache], model: Any, texts: Sequence[Tensor], expected: Tensor) -> bool:
    """Whether it says the same where `PaddedRows` does; a part of a model that it can't read is no error."""
    try:
        gaps = (read_in_steps(faster(model), texts) - expected).abs()
    except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False
    return float(gaps.mean(-1).max()) <= _tolerance(model) and float(gaps.max()) <= _same(model)


def probe_texts(model: Any, reserved: frozenset[int]) -> list[Tensor]:
    """Two texts after each of two prompts of different lengths, seeded and made of ordinary tokens; they end with `STEPS` of their own."""
    generator, device = torch.Generator().manual_seed(0), next(model.parameters()).device
    words = torch.tensor([i for i in range(model.get_input_embeddings().weight.shape[0]) if i not in reserved] or [0])
    drawn = [words[torch.randint(len(words), (length + 2 * STEPS,), generator=generator)].to(device) for length in PROMPTS]
    return [torch.cat([text[: -2 * STEPS], own]) for text in drawn for own in text[-2 * STEPS :].chunk(2)]


def read_in_steps(cache: RowCache, texts: Sequence[Tensor]) -> Tensor:
    """Log-probs of the last `STEPS` tokens of the probe's texts ``[4, STEPS]`` as a sampler reads them: prompts together and once, then the
    texts token by token, until the first of them is dropped; 0 from there on."""
    prompts, own = [text[:-STEPS] for text in texts[::2]], torch.stack([text[-STEPS:] for text in texts])
    width = max(map(len, prompts))
    # Padded with a word: what a model reads of padding shows then, while the embedding of a padding token may be 0.
    tokens = torch.stack([torch.cat([own[0, :1].expand(width - len(prompt)), prompt]) for prompt in prompts])
    mask = torch.stack([torch.arange(width, device=own.device) >= width - len(prompt) for prompt in prompts])
    said = torch.zeros(own.shape, device=own.device)
    rows = torch.arange(len(texts), device=own.device)
    logits = cache.read(tokens, mask)[rows // 2]
    mask = mask[rows // 2]
    cache.reorder_cache(rows // 2)
    for step in range(STEPS):
        if step > 0:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
            logits = cache.read(own[rows, step - 1].unsqueeze(-1), mask)
        said[rows, step] = _logps(logits, own[rows, step])
        if step == DROP:
            rows, mask = rows[1:], mask[1:]
            cache.reorder_cache(torch.arange(1, len(texts), device=own.device))
    return said


def _of_one_length(mask: Tensor) -> Iterator[Tensor]:
    """Numbers of the rows that are of one length, for each length."""
    lengths = mask.sum(-1)
    return ((lengths == length).nonzero().squeeze(-1) for length in lengths.unique())


def _logps(logits: Tensor, tokens: Tensor) -> Tensor:
    """Of the last of ``tokens``, ``[N, V]`` to ``[N]``."""
    return logits.float().log_softmax(-1).gather(-1, tokens[-len(logits) :].unsqueeze(-1)).squeeze(-1)


def _same(model: Any) -> float:
    """`SAME` in float32; where more is rounded, another order of the same products may be as far off as any way is."""
    return SAME if _tolerance(model) == EXACT else math.inf


def _tolerance(model: Any) -> float:
    weight = next(model.parameters())
    rounded = weight.device.type != "cpu" and torch.get_float32_matmul_precision() != "highest"
    return ROUNDED if rounded or weight.dtype != torch.float32 else EXACT
