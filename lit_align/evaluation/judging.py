"""What a judge says of matches: who beats whom, with what certainty."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lit_align.evaluation.answers import Matches
from lit_align.types import Annotation, Annotator, UserError


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
    starts = range(0, len(matches.texts), chunk)
    wins = torch.cat([beats(judge.annotate(matches.rollouts(start, start + chunk))) for start in starts])
    if not soft:
        wins = ((wins - 0.5).sign() / 2 + 0.5).where(~wins.isnan(), torch.nan)  # the sign of NaN is 0
    if bool(wins.isnan().all()):
        raise UserError(f"{type(judge).__name__} gave no valid verdict on {len(wins)} matches. What it warned of above says why.")
    lengths = torch.tensor([[len(text) for text in row] for row in matches.texts], dtype=torch.float64)
    return Verdicts(matches.names, wins, lengths, torch.tensor(matches.about))


def beats(said: Annotation, log_odds: bool = False) -> Tensor:
    """P(i beats j) in float64 on the CPU, ``[B, K, K]``: of a judge that compares, as it says it; of one that scores, whether the score is
    higher, half where it is equal, or with ``log_odds`` the sigmoid of the difference. NaN on the diagonal, and where a response is invalid
    or the two were not compared."""
    if said.preferences is not None:
        wins = said.preferences.double().cpu()
    else:
        scores = said.scores.double().cpu()
        ahead = scores.unsqueeze(-1) - scores.unsqueeze(-2)
        wins = ahead.sigmoid() if log_odds else ahead.sign() / 2 + 0.5
    valid = said.valid.cpu()
    counts = valid.unsqueeze(-1) & valid.unsqueeze(-2) & ~torch.eye(valid.shape[-1], dtype=torch.bool)
    return wins.where(counts, torch.nan)
