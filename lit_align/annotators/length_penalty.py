"""A price on length."""

from dataclasses import replace
from typing import final

import torch

from lit_align.annotators.composite import Composite
from lit_align.types import Annotation, Annotator, Rollouts, UserError


@final
class LengthPenalty(Composite):
    """Another annotator's scores, minus a price for every token or word beyond those that are free.

    Preferences are dropped: a judge's do not know the price, and pairs made of them would not pay it. Pairs are made of the scores.

    Args:
        annotator: who scores.
        per_token: price of a token of the response, the end of sequence included, in units of score.
        per_word: price of a word, which is what spaces separate.
        free: how many tokens or words cost nothing.

    Raises:
        UserError: unless exactly one of ``per_token`` and ``per_word`` is given, and it and ``free`` are not negative; when asked with
            ``per_token``, if there are no tokens.
    """

    def __init__(self, annotator: Annotator, per_token: float | None = None, per_word: float | None = None, free: int = 0) -> None:
        super().__init__([annotator], f"per_token={per_token}, per_word={per_word}, free={free}")
        prices = [price for price in (per_token, per_word) if price is not None]
        if len(prices) != 1 or not prices[0] >= 0 or free < 0:
            raise UserError(
                f"LengthPenalty: give either per_token or per_word, not negative, and a free length that is not negative, got "
                f"per_token = {per_token}, per_word = {per_word}, free = {free}."
            )
        self.price, self.counts_words, self.free = prices[0], per_word is not None, free

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` on the CPU."""
        [member] = self.members
        answer = member.annotate(rollouts).to("cpu")
        scores = answer.scores.detach().float() - self.price * (self._lengths(rollouts) - self.free).clamp(min=0).float()
        return replace(answer, scores=scores.where(answer.valid, 0.0), preferences=None, seen_first=None)

    def _lengths(self, rollouts: Rollouts) -> torch.Tensor:
        if self.counts_words:
            return torch.tensor([[len(text.split()) for text in texts] for texts in rollouts.texts])
        if not rollouts.response_mask.shape[-1]:
            raise UserError(
                "LengthPenalty: per_token needs the tokens of the responses, but these are texts alone, as `lit-align judge` and "
                "`agree` have them. Give per_word instead."
            )
        return rollouts.response_mask.sum(-1).cpu()
