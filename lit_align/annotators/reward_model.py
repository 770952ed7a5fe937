"""A reward model as an annotator."""

import warnings
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

from lit_align.annotators.hosting import HostedModel
from lit_align.models.loading import DType, load_classifier
from lit_align.models.scoring import last_logits, row_of
from lit_align.types import Annotation, Annotator, Prompt, Rollouts, UserError


@final
class RewardModelAnnotator(Annotator):
    """Scores each response by the logit of any Hugging Face sequence classifier, with the classifier's own tokenizer.

    A plain-text prompt is read as prompt followed by response, messages as the chat with the response as the assistant's turn; what
    spells a special token in a response or a message is read as text. A score is that of the row alone: neither its neighbours, nor
    the tokenizer's padding side, nor a pad token that also ends sequences changes it. A response that makes its row longer than
    ``max_tokens`` is invalid, never cut.

    Args:
        path: a folder written by ``save_pretrained``, or a name on the Hugging Face hub; ``$VARIABLES`` are expanded.
        max_tokens: longest row, prompt and response together; None is what the model can read.
        batch_size: rows of one forward pass, of similar length.
        dtype: of the weights. bfloat16 halves the memory and keeps about three digits of a score.
        chat_template: a Jinja file for prompts that are messages, where the tokenizer has no template of its own.
        offload: on the device only while it annotates, in the CPU's memory otherwise.
        label: which logit to read where the classifier has several; larger should be better.

    Attributes:
        too_long: responses so far that did not fit.

    Raises:
        UserError: at ``setup``, if there is no such model, its head was never trained, it has several logits and ``label`` chooses
            none, or ``label`` is none of them.
    """

    log_odds = True

    def __init__(
        self,
        path: str,
        max_tokens: int | None = None,
        batch_size: int = 16,
        dtype: DType = "float32",
        chat_template: str | None = None,
        offload: bool = False,
        label: int | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise UserError(f"RewardModelAnnotator: max_tokens should be the longest row, at least 1, or null, got {max_tokens}.")
        self.identity = path if label is None else f"{path}[{label}]"
        self.max_tokens, self.label = max_tokens, label
        self.host = HostedModel("RewardModelAnnotator", path, self._load, dtype, chat_template, offload, batch_size)
        self.too_long = 0

    def setup(self, device: torch.device) -> None:
        """Load the model."""
        self.host.setup(device)

    def close(self) -> None:
        """Forget the model."""
        self.host.close()

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` on the CPU."""
        rows = [self.row(p, text) for p, texts in zip(rollouts.prompts, rollouts.texts, strict=True) for text in texts]
        fits = [self.fits(row) for row in rows]
        self._count_too_long(len(rows) - sum(fits))
        scores = torch.zeros(len(rows), dtype=torch.float32)
        index = [i for i, fit in enumerate(fits) if fit]
        if index:
            scores[index] = self._scores([rows[i] for i in index])
        shape = rollouts.response_tokens.shape[:2]
        valid = torch.tensor(fits).reshape(shape) & scores.isfinite().reshape(shape)
        return Annotation(scores=scores.reshape(shape).where(valid, 0.0), valid=valid, annotator_version=self.version)

    def row(self, prompt: Prompt, text: str) -> list[int]:
        """Token ids of prompt and response, as the classifier reads them."""
        return row_of("RewardModelAnnotator", self.host.tokenizer, prompt, text)

    def fits(self, row: Sequence[int]) -> bool:
        """Whether it can be read: it is not empty, nor too long."""
        return len(row) > 0 and (self._limit is None or len(row) <= self._limit)

    def logits(self, model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
        """The score of each of these rows by ``model``, which is where `HostedModel.working` has it, ``[N]``; with gradient where there is
        any."""
        width, device = max(len(row) for row in rows), self.host.device
        tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long, device=device)
        mask = torch.tensor([[i < len(row) for i in range(width)] for row in rows], device=device)
        return last_logits(model, tokens, mask, self.host.tokenizer.pad_token_id)[:, self.label or 0]

    @property
    def _limit(self) -> int | None:
        return self.max_tokens or self.host.context_length

    def _scores(self, rows: Sequence[list[int]]) -> Tensor:
        """One logit per row, ``[N]``."""
        scores = torch.zeros(len(rows), dtype=torch.float32)
        with self.host.working() as model:
            for index in self.host.batches([len(row) for row in rows]):
                scores[index] = self.logits(model, [rows[i] for i in index]).float().cpu()
        return scores

    def _count_too_long(self, count: int) -> None:
        if count and not self.too_long:
            warnings.warn(
                f"RewardModelAnnotator expected prompt and response together to have 1 to {self._limit} tokens of its tokenizer, but "
                f"{count} of a chunk have not. Those responses are invalid (nothing is learned from them) and the run goes on. "
                "Shorten prompts or responses, or raise max_tokens if the model can read more; later cases are counted in `too_long` and "
                "not shown.",
                stacklevel=3,
            )
        self.too_long += count

    def _load(self, path: str, dtype: DType) -> Any:
        model = load_classifier("RewardModelAnnotator", path, dtype)
        model.config.get_text_config().use_cache = False  # nothing is generated: a key-value cache would be memory for nothing
        labels = model.config.num_labels
        if self.label is None and labels != 1:
            raise UserError(
                f"RewardModelAnnotator expected a classifier with one logit, but {path!r} has {labels}: {dict(model.config.id2label)}. "
                "Choose the one that a good response should raise by `label: NUMBER`, or give a reward model with num_labels = 1."
            )
        if self.label is not None and not 0 <= self.label < labels:
            raise UserError(f"RewardModelAnnotator: label should be from 0 to {labels - 1} for {path!r}, got {self.label}.")
        return model
