"""A way to read on a GPU, where a token takes hundreds of small operations, and starting them takes longer than they do.

Everything that a step reads and writes is in memory that stays where it is, so its operations are recorded once, as a CUDA graph,
and replayed. The memory and the graph belong to one call of the sampler: nobody moves weights while it samples, and training has
all of the GPU afterwards.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, final
from weakref import WeakSet

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from transformers import Cache, StaticCache
from transformers.cache_utils import StaticLayer

from lit_align.models.decoding import PaddedRows, RowCache
from lit_align.models.positions import context_of, positions_of
from lit_align.models.sharding import is_sharded
from lit_align.models.shortage import out_of_memory

DEVICES = frozenset({"cuda"})  # elsewhere operations can't be recorded, and without that memory that stays in its place gains nothing
ARGUMENTS = {"input_ids", "attention_mask", "position_ids", "past_key_values"}
ATTENTION = {"sdpa", "eager"}  # others take keys without a mask for those that are not written yet
ROOM = 128  # tokens that there is memory for at least

_UNRECORDED: WeakSet[nn.Module] = WeakSet()  # models of which a step could not be recorded


def fits(model: Any) -> bool:
    """Whether `StaticRows` can read this model as it is now: on one GPU, whole, attending to all of a text, and not watched by hooks,
    which a replay would leave out."""
    devices, config = {weight.device.type for weight in model.parameters()}, model.config
    return (
        model not in _UNRECORDED
        and devices <= DEVICES
        and not is_sharded(model)
        and not _is_changed(model)
        and inspect.signature(type(model).forward).parameters.keys() >= ARGUMENTS
        and config._attn_implementation in ATTENTION
        and all(type(layer) is StaticLayer for layer in StaticCache(config=config, max_cache_len=1).layers)
    )


def _is_changed(model: Any) -> bool:
    """Whether there is a hook other than that of checkpointing, which lets inputs require a gradient, or a forward of somebody else."""
    known = {handle.id for handle in vars(model).get("_require_grads_hooks", ())}
    modules = list(model.modules())
    hooks = {hook for module in modules for hook in (*module._forward_hooks, *module._forward_pre_hooks)}
    return not hooks <= known or any("forward" in vars(module) for module in modules)


def rung(count: int) -> int:
    """The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is no smaller: memory is of these sizes, as each has to be recorded anew.

    >>> [rung(count) for count in (1, 3, 5, 7, 96, 97, 129)]
    [1, 3, 6, 8, 96, 128, 192]
    """
    whole = 1 << (count - 1).bit_length()
    return whole * 3 // 4 if whole >= 4 and count <= whole * 3 // 4 else whole


def run_and_record(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """Take ``step`` now; a function that takes it again, on the same memory.

    On a GPU it is taken on a stream of its own and then recorded, which runs nothing, as PyTorch's notes on CUDA graphs ask for.

    Raises:
        RuntimeError: if it can't be recorded.
    """
    if device.type != "cuda":
        step()
        return step
    with torch.cuda.device(device):
        here, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside):
            step()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Back to this stream, where recording itself fails to go back; and an annotator may be at work on the GPU in another thread.
        with torch.cuda.stream(here), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            step()
        return graph.replay


@final
class _Layer(StaticLayer):
    """Keys and values in memory that is given ``[R, G, room, D]``, and how many of them are written, in a tensor as well."""

    def __init__(self, keys: Tensor, values: Tensor, written: Tensor) -> None:
        super().__init__(max_cache_len=keys.shape[2])
        self.keys, self.values, self.cumulative_length = keys, values, written
        self.dtype, self.device, self.batch_size, self.is_initialized = keys.dtype, keys.device, len(keys), True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """In mixed precision values come in another type than those of prompts were kept in."""
        return super().update(key_states.to(self.keys), value_states.to(self.values), *args, **kwargs)


@final
@dataclass(frozen=True)
class _Memory:
    """All that a step reads and writes, of R rows."""

    cache: Cache
    written: Tensor  # tokens that each layer has [layers]
    start: Tensor  # what that is before a step, []
    tokens: Tensor  # [R, 1]
    positions: Tensor  # [R, 1]
    mask: Tensor  # [R, room]
    logits: Tensor  # [R, V]


@final
class StaticRows(RowCache):
    """Left-padded and shared rows whose later tokens are read by replayed operations.

    Prompts are read by `PaddedRows`. Then there is memory for as many rows and tokens as the next `rung` says: rows that end leave a gap
    until the rest fits a smaller one, and texts that outgrow it are copied into a larger one. After either a step is recorded anew.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._prompts: PaddedRows | None = PaddedRows(model)  # until the first step
        self._memory: _Memory | None = None  # from then on
        self._places = torch.empty(0, dtype=torch.long)  # where in either each row is [N]
        self._none = torch.empty(0, 0)  # logits of no row [0, V]
        self._again: Callable[[], None] | None = None  # takes another step in this memory

    @torch.no_grad()
    def read(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """See `RowCache.read`."""
        if self._prompts is not None and tokens.shape == mask.shape:
            said = self._prompts.read(tokens, mask)
            self._places, self._none = torch.arange(len(tokens), device=tokens.device), said[:0]
            return said
        lengths = range(mask.shape[1] - tokens.shape[1] + 1, mask.shape[1] + 1)
        return [self._read_one(token, mask[:, :length]) for token, length in zip(tokens.split(1, -1), lengths, strict=True)][-1]

    def reorder_cache(self, index: Tensor) -> None:
        """See `RowCache.reorder_cache`. Nothing is copied before the next step."""
        self._places = self._places[index]
        if self._memory is not None and len(set(index.tolist())) < len(index):  # two rows in one place
            self._move(self._memory.mask.shape[1])

    def _read_one(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Logits ``[N, V]`` of what follows one more token ``[N, 1]``."""
        length = mask.shape[1]
        memory = self._memory
        if memory is None or rung(len(tokens)) < len(memory.tokens) or length > memory.mask.shape[1]:
            room, context = max(rung(length), ROOM), context_of(self._model.config.get_text_config())
            memory = self._move(room if context is None else max(length, min(room, context)))  # some have a place for no more
        memory.tokens[self._places], memory.positions[self._places] = tokens, positions_of(mask)[:, -1:]
        memory.mask[self._places, :length] = mask
        memory.start.fill_(length - 1)
        if self._again is None:
            self._again = self._take_first(partial(_take_step, self._model, memory), tokens.device)
        else:
            self._again()
        return memory.logits[self._places]

    def _take_first(self, step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        """Take a step in new memory; what takes the next ones."""
        if self._model not in _UNRECORDED:
            try:
                return run_and_record(step, device)
            except RuntimeError as error:
                if out_of_memory(error):
                    raise
                _UNRECORDED.add(self._model)
                reason = str(error.__context__ or error).partition("\n")[0]  # what ended the recording, before its end failed too
                rank_zero_info(
                    f"A step of {type(self._model).__name__} could not be recorded as a CUDA graph ({reason}). Samples are drawn without "
                    "one, from the next call of the sampler on by `PaddedRows`."
                )
        step()  # for the second time if it was not the recording that failed: it writes the same to the same places
        return step

    def _move(self, room: int) -> _Memory:
        """Put all rows side by side into memory with ``room`` for so many tokens, in that which is there if it is large enough."""
        read = self._memory or self._prompts
        assert read is not None
        old: list[Any] = read.cache.layers
        del read  # which would keep the old memory
        count = len(self._places)
        index = torch.cat([self._places, self._places[:1].expand(rung(count) - count)])  # what stands in gaps has to be numbers
        self._again = self._memory = self._prompts = None  # the recorded step goes first: it reads the old memory
        device, rows = index.device, len(index)
        written = torch.zeros(len(old), dtype=torch.long, device=device)
        layers: list[Any] = []
        while old:  # one at a time, so that no more than one layer is there twice
            layer = old.pop(0)
            layers.append(_Layer(_moved(layer.keys, index, room), _moved(layer.values, index, room), written[len(layers)]))
        self._memory = _Memory(
            cache=Cache(layers=layers),
            written=written,
            start=written.new_zeros(()),
            tokens=written.new_zeros(rows, 1),
            positions=written.new_zeros(rows, 1),
            mask=torch.ones(rows, room, dtype=torch.bool, device=device),  # what is not written yet is hidden by being later
            logits=self._none.new_zeros(rows, self._none.shape[-1]),
        )
        self._places = torch.arange(count, device=device)
        return self._memory


def _take_step(model: Any, memory: _Memory) -> None:
    """Read a token of every row. What it does is the same each time, so that it may be repeated or replayed."""
    memory.written.copy_(memory.start)
    kind = memory.tokens.device.type
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    with torch.autocast(kind, dtype, enabled, cache_enabled=False):  # kept casts of weights would be gone, or old, in a later step
        said = model(
            input_ids=memory.tokens,
            attention_mask=memory.mask,
            position_ids=memory.positions,
            past_key_values=memory.cache,
            use_cache=True,
        )
    memory.logits.copy_(said.logits[:, -1])


def _moved(old: Tensor, index: Tensor, room: int) -> Tensor:
    """The rows ``index`` of keys or values ``[R, G, room, D]``. What nobody wrote yet is 0: hidden or not, NaN would spread."""
    kept = old[index]
    if room == old.shape[2] and len(index) <= len(old):
        old[: len(index)] = kept
        return old[: len(index)]
    new = old.new_zeros(len(index), old.shape[1], room, old.shape[3])
    known = min(room, old.shape[2])
    new[:, :, :known] = kept[:, :, :known]
    return new
