"""Whether labels can be trusted, as far as labels themselves can tell."""

import math
import warnings
from typing import Any, final

import torch
from torch import Tensor

from lit_align.functional.distributed import gathered, global_sum
from lit_align.functional.telemetry import distribution_distance, flips, length_moments, saturated, ties
from lit_align.types import Annotation, UserError


@final
class LabelTelemetry:
    """Measures how the labels of every rollout behave, and says in words, once each, what is beyond its limit.

    Of all labels that were asked for, on all ranks; logged as ``labels/<name>`` where they can be known:

    - ``flips``: share of the pairs asked in both orders whose verdict changes with the order. A judge that looks at places only: 1.
    - ``ties``: share of the pairs that a judge compared and found equal, a preference of exactly 1/2.
    - ``invalid_share``: share of the responses without a valid score.
    - ``option_mass``: probability that a judge's model gave to the verdicts it could choose from, averaged.
    - ``saturated``: share of the prompts whose responses all got the best score of the rollout, or all the worst.
    - ``length_correlation``: of score and length in tokens among responses to one prompt; 0 where one of them is always the same.
    - ``drift``: Kolmogorov-Smirnov distance between the scores of this rollout and those of the first ones, 0 for these. It rises as
      the policy gets better; near 1, it does nothing that it did at the start: read samples. Labels of an annotator that has learned since
      (`Annotator.version`) are compared with its own first ones.

    Args:
        max_flips, max_ties, max_invalid, min_mass, max_saturated, max_length_correlation, max_drift: the limits; of the correlation, that
            of its absolute value.
        first_rollouts: how many of them ``drift`` compares with.

    Raises:
        UserError: if a limit is not from 0 to 1, or ``first_rollouts`` is not positive.
    """

    def __init__(
        self,
        max_flips: float = 0.3,
        max_ties: float = 0.5,
        max_invalid: float = 0.1,
        min_mass: float = 0.8,
        max_saturated: float = 0.5,
        max_length_correlation: float = 0.6,
        max_drift: float = 0.95,
        first_rollouts: int = 2,
    ) -> None:
        self.limits = {
            "flips": max_flips,
            "ties": max_ties,
            "invalid_share": max_invalid,
            "option_mass": min_mass,
            "saturated": max_saturated,
            "length_correlation": max_length_correlation,
            "drift": max_drift,
        }
        for name, limit in self.limits.items():
            if not 0 <= limit <= 1:
                raise UserError(f"LabelTelemetry: the limit of {name} should be from 0 to 1, got {limit}.")
        if first_rollouts < 1:
            raise UserError(f"LabelTelemetry: first_rollouts should be at least 1, got {first_rollouts}.")
        self.first_rollouts = first_rollouts
        self._first: list[Tensor] = []  # valid scores of each of the first rollouts, all ranks
        self._version = 0  # of the annotator that gave them
        self._said: set[str] = set()

    def measure(self, annotation: Annotation, lengths: Tensor) -> dict[str, float]:
        """The numbers of a rollout, by name; the same keys and values on all ranks, each of which has to call this.

        Args:
            annotation: of this rank's prompts; there may be none of them.
            lengths: of the responses, in tokens, ``[B, K]``.
        """
        scores, valid = annotation.scores, annotation.valid
        everyone = torch.cat(gathered(scores[valid].cpu()))
        lowest, highest = (float(everyone.min()), float(everyone.max())) if len(everyone) else (0.0, 0.0)
        shares = {
            "invalid_share": torch.stack([(~valid).sum(), torch.tensor(valid.numel(), device=valid.device)]),
            "saturated": saturated(scores, valid, lowest, highest),
        }
        unknown = scores.new_full(scores.shape, math.nan)
        mass = unknown if annotation.mass is None else annotation.mass  # some ranks alone may have met a judge
        known = mass.isfinite()
        shares["option_mass"] = torch.stack([mass.where(known, 0.0).double().sum(), known.sum().double()])
        no_pair = unknown.unsqueeze(-1).expand(*scores.shape, scores.shape[-1])
        shares["ties"] = ties(no_pair if annotation.preferences is None else annotation.preferences)
        shares["flips"] = flips(no_pair if annotation.seen_first is None else annotation.seen_first)
        sums = {name: global_sum(share).tolist() for name, share in shares.items()}
        measured = {name: part / whole for name, (part, whole) in sums.items() if whole}
        product, by_length, by_score = global_sum(length_moments(scores, lengths.to(scores.device), valid)).tolist()
        if len(everyone):
            measured["length_correlation"] = product / (math.sqrt(by_length * by_score) or 1.0)
        return measured | self._drift(everyone, annotation.annotator_version)

    def warn(self, measured: dict[str, float]) -> None:
        """Say what is beyond its limit and was not said before."""
        for name, value in measured.items():
            limit = self.limits[name]
            beyond = value < limit if name == "option_mass" else abs(value) > limit
            if beyond and name not in self._said:
                self._said.add(name)
                warnings.warn(f"{WORDS[name].format(value=value, limit=limit)} This is said once, see labels/{name}.", stacklevel=2)

    def state_dict(self) -> dict[str, Any]:
        """The first scores, whose they are, and what was said."""
        return {"first": self._first, "version": self._version, "said": sorted(self._said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `state_dict` gave it."""
        self._first, self._version, self._said = list(state["first"]), state["version"], set(state["said"])

    def _drift(self, scores: Tensor, version: int) -> dict[str, float]:
        if version != self._version:
            self._first, self._version = [], version
        if not len(scores):
            return {}
        if len(self._first) < self.first_rollouts:
            self._first.append(scores)
            return {"drift": 0.0}
        return {"drift": float(distribution_distance(torch.cat(self._first), scores))}


WORDS = {
    "flips": "The judge's verdict changes with the order of the responses in {value:.0%} of the pairs (limit {limit:.0%}). Both orders are "
    "averaged, so that what is left is mostly ties: try another template, or a more capable judge.",
    "ties": "The judge can't tell {value:.0%} of the pairs apart (limit {limit:.0%}), and nothing is learned from these. Sample at a "
    "higher temperature, or try another template.",
    "invalid_share": "{value:.0%} of the responses have no valid score (limit {limit:.0%}): nothing is learned from what you may have paid "
    "for. The first failure is in the warnings above.",
    "option_mass": "The judge's model gives only {value:.2f} of its probability to the verdicts that it may choose from (limit "
    "{limit:.2f}). Look at the end of the template: the next token should be the verdict.",
    "saturated": "In {value:.0%} of the prompts all responses got the best score of the rollout, or all the worst (limit {limit:.0%}): "
    "they can't be told apart. Ask for finer grades, or for harder or easier prompts.",
    "length_correlation": "Score and length of the responses to a prompt correlate at {value:+.2f} (limit {limit:.2f}): the policy may "
    "learn nothing but length. Look at length-controlled win rates (lit-align judge), or add a LengthPenalty.",
    "drift": "The scores have left those of the first rollouts: the two distributions are {value:.2f} apart (limit {limit:.2f}; 1 is no "
    "overlap). The policy does something that it did not do before. Read its samples before you believe the score.",
}
