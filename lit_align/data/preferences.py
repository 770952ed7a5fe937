"""Prompts with answers that somebody compared, scored, labelled or wrote: the data that preference losses were made for."""

from typing import final

from lit_align.data.columns import listed
from lit_align.data.fixed import FixedDataModule
from lit_align.types import Answer, Prompt, UserError


@final
class PreferenceDataModule(FixedDataModule):
    """The answers are the prompt's ``answers``: pairs, scored lists, answers with a label, demonstrations. K may differ from prompt to
    prompt."""

    def answers_of(self, prompt: Prompt) -> tuple[Answer, ...]:
        """All of them."""
        return given_answers(prompt)


def given_answers(prompt: Prompt) -> tuple[Answer, ...]:
    """The answers that the data have to a prompt.

    Raises:
        UserError: if there is none.
    """
    if not prompt.answers:
        raise UserError(
            "Fixed data need an answer to every prompt: 'chosen' and 'rejected', 'responses' and 'scores', 'completions', 'completion' "
            "and 'label', 'completion', or a conversation that ends with the assistant's turn. "
            f"But beside {str(prompt.content)[:60]!r} there is {listed(prompt.meta)}. Say where the answers "
            "are: `answers` of the prompt source."
        )
    return prompt.answers
