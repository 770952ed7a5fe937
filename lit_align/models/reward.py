"""A language model with one number for a prompt and its response."""

import os
from collections.abc import Sequence
from typing import final

from torch import Tensor

from lit_align.models.loading import DType, checkpoint_activations, context_length, load_scorer, load_tokenizer
from lit_align.models.scoring import last_logits, row_of
from lit_align.types import Message, Prompt, TextModel, UserError

OWNER = "network"  # in messages


@final
class RewardNetwork(TextModel):
    """Any Hugging Face sequence classifier with one logit, or a new head on the backbone of a language model.

    It reads what `RewardModelAnnotator` will read: prompt and response as one row, with no token that neither tokenizer nor template
    adds. Where the two meet, tokens may belong to both, so all of the row is the response's: of a prompt alone there is nothing to
    encode but one token that nobody reads.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        dtype: of the weights.
        chat_template: a Jinja file for prompts that are messages; it takes the place of a template of the tokenizer's own.
        gradient_checkpointing: in training forwards keep only each layer's input, and compute the rest again for the gradient.
        seed: of a new head.

    Attributes:
        context_length: tokens of the longest row that the model can read, and the one that nobody reads; None where it doesn't say.

    Raises:
        UserError: if there is no such model, it has several logits, more than its head is missing, or there is no token to pad with.
    """

    def __init__(
        self, path: str, dtype: DType = "float32", chat_template: str | None = None, gradient_checkpointing: bool = False, seed: int = 0
    ) -> None:
        super().__init__()
        self.path = os.path.expandvars(path)
        self.tokenizer = load_tokenizer(OWNER, self.path, chat_template)
        self.model = load_scorer(OWNER, self.path, dtype, seed)
        self.model.config.get_text_config().use_cache = False  # nothing is generated
        self.model.train()  # from_pretrained gives eval mode, in which a configured dropout would do nothing
        self._own_pad_id, self.pad_id = self._find_pad_ids()
        self.bos_id = None  # none that has to be kept where a prompt is cut: none is cut
        length = context_length(self.model, self.tokenizer)
        self.context_length = None if length is None else length + 1
        if gradient_checkpointing:
            checkpoint_activations(self.model)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """The score of every row in float32, ``[N]``, with gradient.

        Args:
            tokens: of `encode_response`, padded on the right, ``[N, S]``.
            mask: bool, no row empty, ``[N, S]``.
        """
        return last_logits(self.model, tokens, mask, self._own_pad_id)[:, 0].float()

    def encode(self, prompt: Prompt) -> list[int]:
        """One token that nobody reads: a batch has at least one of every prompt."""
        return [self.pad_id]

    def encode_response(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of prompt and response as one row, as an annotator reads them."""
        return row_of(OWNER, self.tokenizer, prompt, text)

    def encode_turns(self, prompt: Prompt, turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """The same of an answer of several turns."""
        tokens = row_of(OWNER, self.tokenizer, prompt, turns)
        return tokens, [True] * len(tokens)

    def save(self, folder: str) -> None:
        """Write a Hugging Face folder that ``RewardModelAnnotator(folder)`` and ``AutoModelForSequenceClassification`` read, model and
        tokenizer with the same pad token."""
        self.model.config.pad_token_id = self.model.config.get_text_config().pad_token_id = self.pad_id
        self.tokenizer.pad_token_id = self.pad_id
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def _find_pad_ids(self) -> tuple[int | None, int]:
        """The tokenizer's own, if the model embeds it; and it or else BOS, which no row ends with, or EOS."""
        embedded = self.model.get_input_embeddings().weight.shape[0]
        named = [self.tokenizer.pad_token_id, self.tokenizer.bos_token_id, self.tokenizer.eos_token_id]
        usable = [i if i is not None and i < embedded else None for i in named]
        found = next((i for i in usable if i is not None), None)
        if found is None:
            raise UserError(
                f"{OWNER}: the tokenizer of {self.path!r} has no padding, BOS or EOS token that the model embeds, so a classifier made of "
                "it could not be read in batches. Set `pad_token` in its tokenizer_config.json."
            )
        return usable[0], found
