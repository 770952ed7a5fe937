"""A frozen Hugging Face model that labels: loaded once, fed in batches of similar length, on the device when it is needed."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, final

import torch
from transformers import AutoTokenizer

from lit_align.types import Message, UserError

DType = Literal["float32", "bfloat16"]


@final
class HostedModel:
    """Holds a model and its tokenizer, neither of which trains, for an annotator that does not care where they are.

    Args:
        owner: name of the annotator, for messages.
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        load: from path and dtype to a model; it may raise OSError or ValueError where there is none.
        dtype: of the weights.
        chat_template: a Jinja file that takes the place of the tokenizer's own template.
        offload: on the device only inside ``working()``, in the CPU's memory otherwise.
        batch_size: rows of one forward pass.

    Raises:
        UserError: if ``batch_size`` is not positive; when loading, if there is no such model or template.
    """

    def __init__(
        self,
        owner: str,
        path: str,
        load: Callable[[str, torch.dtype], Any],
        dtype: DType,
        chat_template: str | None,
        offload: bool,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"{owner}: batch_size should be the rows of one forward pass, at least 1, got {batch_size}.")
        self.owner, self.path, self.dtype = owner, os.path.expandvars(path), dtype
        self.chat_template, self.offload, self.batch_size = chat_template, offload, batch_size
        self.device = torch.device("cpu")
        self._load = load
        self._loaded: tuple[Any, Any] | None = None

    @property
    def model(self) -> Any:
        """The model, in eval mode; loaded on first use."""
        return self._model_and_tokenizer()[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._model_and_tokenizer()[1]

    @property
    def context_length(self) -> int | None:
        """How many tokens it can read, where its config or its tokenizer says so."""
        of_model = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        of_tokenizer = self.tokenizer.model_max_length  # 1e30 where it doesn't know; less than the model's in RoBERTa
        known = [int(length) for length in (of_model, of_tokenizer) if length and length < 1e9]
        return min(known, default=None)

    def setup(self, device: torch.device) -> None:
        """Load; move to ``device`` unless offloaded."""
        self.device = device
        self.model.to("cpu" if self.offload else device)

    def close(self) -> None:
        """Forget the model; it is loaded again if it is needed again."""
        self._loaded = None

    @contextmanager
    def working(self) -> Iterator[Any]:
        """The model on its device, without gradient and without the Trainer's autocast: labels are of the dtype that was asked for."""
        model = self.model.to(self.device)
        try:
            with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                yield model
        finally:
            if self.offload:
                model.to("cpu")

    def render(self, messages: Sequence[Message], *, answer: bool, options: dict[str, Any] | None = None) -> str:
        """Messages as the chat template joins them; with ``answer``, up to where the model's own turn begins."""
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.owner}: the prompt is a list of messages, but the tokenizer of {self.path!r} has no chat template. "
                f"Give `chat_template: FILE.jinja` to {self.owner}, or plain-text prompts."
            )
        turns = [dict(message) for message in messages]
        return self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer, **(options or {}))

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of rows, longest first, in batches: rows of similar length share one, and memory runs out early or never."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        yield from (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))

    def _model_and_tokenizer(self) -> tuple[Any, Any]:
        if self._loaded is None:
            try:
                model, tokenizer = self._load(self.path, getattr(torch, self.dtype)), AutoTokenizer.from_pretrained(self.path)
            except (OSError, ValueError) as error:
                kind = "a folder without a readable model" if Path(self.path).is_dir() else "neither a folder here nor a model on the hub"
                raise UserError(
                    f"{self.owner}: no model at {self.path!r}: it is {kind}. Expected a folder with config.json, weights and a tokenizer, "
                    f"or a hub name.\nThe current folder is {Path.cwd()}. The loader said: {str(error).splitlines()[0]}"
                ) from error
            if self.chat_template is not None:
                tokenizer.chat_template = _read(self.owner, self.chat_template)
            self._loaded = model.eval().requires_grad_(False), tokenizer
        return self._loaded


def _read(owner: str, path: str) -> str:
    try:
        return Path(os.path.expandvars(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{owner}: chat_template should be a readable Jinja file, got {path!r}: {error}.") from error
