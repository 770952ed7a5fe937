"""Asking again, and keeping what was answered alike."""

from dataclasses import replace
from typing import final

import torch

from lit_align.annotators.composite import Composite, mean_mass, mean_preferences, stacked
from lit_align.functional.ranking import kendalls_w
from lit_align.metering import repeated
from lit_align.types import Annotation, Annotator, Rollouts, UserError


@final
class RepeatRank(Composite):
    """Has the same responses labelled several times and keeps the prompts whose rankings agree; of others all responses are invalid.

    Repeat r, from 0, differs from the others in two ways. The responses are in another order: the first r of the ``K`` come last, modulo
    K, which a judge that reads them side by side will notice. And `lit_align.metering.current_repeat` is r, which a backend that draws its
    answers puts into its question, so that a remembered answer is not taken for a new one. An annotator that neither draws nor
    minds the order answers the same every time, and every prompt is kept.

    Scores, and preferences where the annotator has them, are means over the repeats. A response that any repeat left invalid is; the
    rankings are of the others. Agreement is `kendalls_w`.

    Args:
        annotator: who is asked.
        repeats: how often, at least 2. So many times the price.
        min_agreement: Kendall's W of the prompts that are kept, at least: from 0, all of them, to 1, where all rankings are one.

    Attributes:
        dropped: prompts so far whose rankings agreed less, or with fewer than two valid responses.

    Raises:
        UserError: if a number is out of range, or there is only one response to a prompt.
    """

    def __init__(self, annotator: Annotator, repeats: int, min_agreement: float) -> None:
        super().__init__([annotator], f"repeats={repeats}, min_agreement={min_agreement}")
        if repeats < 2 or not 0 <= min_agreement <= 1:
            raise UserError(
                f"RepeatRank: repeats should be at least 2 and min_agreement, Kendall's W, from 0 to 1, got {repeats} and {min_agreement}."
            )
        self.repeats, self.min_agreement, self.dropped = repeats, min_agreement, 0

    @property
    def log_odds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the annotator's are."""
        return self.members[0].log_odds

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` and, if the annotator has them, preferences ``[B, K, K]`` on the CPU."""
        k = rollouts.response_tokens.shape[1]
        if k < 2:
            raise UserError(f"RepeatRank compares rankings of the responses to a prompt and needs at least 2, got {k}.")
        answers = [self._asked(rollouts, repeat) for repeat in range(self.repeats)]
        scores, given = stacked(answers)
        agreement = kendalls_w(scores, given.all(0))  # [B]
        kept = agreement >= self.min_agreement
        self.dropped += int((~kept).sum())
        valid = given.all(0) & kept.unsqueeze(-1)
        return Annotation(
            scores=scores.mean(0).where(valid, 0.0),
            valid=valid,
            preferences=mean_preferences(answers, [1.0] * self.repeats, self.repeats),
            mass=mean_mass(answers),
            parts={name: torch.stack([answer.parts[name].float().cpu() for answer in answers]).nanmean(0) for name in answers[0].parts},
            annotator_version=self.version,
        )

    def _asked(self, rollouts: Rollouts, repeat: int) -> Annotation:
        """One answer, with the responses in their own order again."""
        turn = repeat % rollouts.response_tokens.shape[1]
        turned = rollouts.map_tensors(lambda tensor, letters: tensor.roll(-turn, 1) if letters[:2] == "BK" else tensor)
        with repeated(repeat):
            [member] = self.members
            answer = member.annotate(replace(turned, texts=tuple((*texts[turn:], *texts[:turn]) for texts in rollouts.texts)))
        return answer.map_tensors(lambda tensor, letters: tensor.roll([turn] * (len(letters) - 1), list(range(1, len(letters)))))
