"""A rule that checks each response by itself."""

from typing import final

import torch

from lit_align.annotators.deciding import Decider, name_of
from lit_align.annotators.rules import Rule
from lit_align.types import Annotation, Annotator, Rollouts


@final
class Verifier(Annotator):
    """Scores each response 1 if a rule finds it right and 0 if not, or by the number that the rule returns.

    Where the rule can't decide (a prompt without a reference answer, an exception) the response is invalid, never fatal.

    Args:
        rule: `Exact`, `Contained`, `Numeric`, `Regex` or `Mathematical`, or a function of yours, ``rule(prompt, response)``.
    """

    def __init__(self, rule: Rule) -> None:
        self.rule, self.decider = rule, Decider("Verifier")
        self.identity = f"Verifier({name_of(rule)})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` on the CPU."""
        asked = zip(rollouts.prompts, rollouts.texts, strict=True)
        rows = [[self.decider.decide(self.rule, prompt, text) for text in texts] for prompt, texts in asked]
        scores = torch.tensor(rows, dtype=torch.float32).reshape(rollouts.response_tokens.shape[:2])  # [B, K]
        valid = scores.isfinite()
        return Annotation(scores=scores.where(valid, 0.0), valid=valid, annotator_version=self.version)
