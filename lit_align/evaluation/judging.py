"""What a judge says of matches: who beats whom, with what certainty."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.answers import Matches
from lit_align.types import Annotator, UserError


@final
@dataclass(frozen=True, slots=True)
class Verdicts:
    """``wins[n, i, j]`` is P(side i beats side j) in match n, NaN where nobody asked or the answer is invalid; ``lengths`` are of the texts
    in characters, a unit that no tokenizer sets; ``about`` numbers prompts."""

    names: tuple[str, ...]
    wins: Tensor  # [N, M, M] float64
    lengths: Tensor  # [N, M]
    about: Tensor  # [N]

    def of(self, first: int, second: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The valid verdicts for ``first`` against ``second``, both lengths, and the prompts, ``[n]`` each."""
        valid = ~self.wins[:, first, second].isnan()
        return self.wins[valid, first, second], self.lengths[valid, first], self.lengths[valid, second], self.about[valid]


def judged(judge: Annotator, matches: Matches, *, soft: bool = False, chunk: int = 32) -> Verdicts:
    """Let ``judge`` see all sides' answers to a prompt as one group of responses.

    A judge that compares says who is better, and how likely it is: with ``soft`` that probability is the verdict, else who is above 1/2
    wins. Of one that scores, the higher score wins. Equal is a tie.

    Args:
        judge: set up already.
        matches: see `matched`.
        soft: keep probabilities.
        chunk: matches that are judged together.

    Raises:
        UserError: if no verdict is valid.
    """
    m, found = len(matches.names), []
    for start in range(0, len(matches.texts), chunk):
        said = judge.annotate(matches.rollouts(start, start + chunk))
        scores, valid = said.scores.double().cpu(), said.valid.cpu()
        if said.preferences is None:
            wins = (scores.unsqueeze(-1) - scores.unsqueeze(-2)).sign() / 2 + 0.5  # [n, M, M]
        else:
            wins = said.preferences.double().cpu()
            wins = wins if soft else ((wins - 0.5).sign() / 2 + 0.5).where(~wins.isnan(), math.nan)  # the sign of NaN is 0
        counts = valid.unsqueeze(-1) & valid.unsqueeze(-2) & ~torch.eye(m, dtype=torch.bool)
        found.append(wins.where(counts, math.nan))
    wins = torch.cat(found)
    if bool(wins.isnan().all()):
        raise UserError(f"{type(judge).__name__} gave no valid verdict on {len(wins)} matches. What it warned of above says why.")
    lengths = torch.tensor([[len(text) for text in row] for row in matches.texts], dtype=torch.float64)
    return Verdicts(matches.names, wins, lengths, torch.tensor(matches.about))
