"""Prompts with a good answer each: supervised data as rollouts of one response."""

from typing import final

from lit_align.data.fixed import FixedDataModule
from lit_align.types import Answer, Prompt, UserError


@final
class DemonstrationDataModule(FixedDataModule):
    """The answer to imitate is the prompt's ``reference``: K = 1, score 1."""

    def answers_of(self, prompt: Prompt) -> tuple[Answer, ...]:
        """The reference."""
        if prompt.reference is None:
            raise UserError(
                f"A demonstration needs an answer, but the prompt {str(prompt.content)[:60]!r} has none. "
                "Name the field that holds it: `reference_field` of the prompt source."
            )
        return (Answer(prompt.reference),)
