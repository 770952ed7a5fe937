"""A frozen Hugging Face model that labels: loaded once, fed in batches of similar length, on the device when it is needed."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

import torch

from lit_align.models.chat import render
from lit_align.models.loading import DType, context_length, load_tokenizer
from lit_align.types import Message, UserError


@final
class HostedModel:
    """Holds a model and its tokenizer, neither of which trains, for an annotator that does not care where they are.

    Args:
        owner: name of the annotator, for messages.
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        load: from path and dtype to a model, or a UserError.
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
        load: Callable[[str, DType], Any],
        dtype: DType,
        chat_template: str | None,
        offload: bool,
        batch_size: int,
    ) -> None:
        if batch_size < 1:
            raise UserError(f"{owner}: batch_size should be the rows of one forward pass, at least 1, got {batch_size}.")
        self.owner, self.path = owner, os.path.expandvars(path)
        self.dtype: DType = dtype
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
    def loaded(self) -> bool:
        """Whether the model is here already."""
        return self._loaded is not None

    @property
    def context_length(self) -> int | None:
        """How many tokens it can read, where its config or its tokenizer says so."""
        return context_length(self.model, self.tokenizer)

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
        return render(self.owner, self.tokenizer, messages, answer=answer, options=options)

    def batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        """Indices of rows, longest first, in batches: rows of similar length share one, and memory runs out early or never."""
        order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
        yield from (order[i : i + self.batch_size] for i in range(0, len(order), self.batch_size))

    def _model_and_tokenizer(self) -> tuple[Any, Any]:
        if self._loaded is None:
            model = self._load(self.path, self.dtype)
            self._loaded = model.eval().requires_grad_(False), load_tokenizer(self.owner, self.path, self.chat_template)
        return self._loaded
