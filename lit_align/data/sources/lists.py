"""Prompts that are written down where they are used."""

from typing import final

from lit_align.data.messages import shown
from lit_align.data.sources.rows import prompt_id
from lit_align.types import IndexedPrompts, Prompt, UserError


@final
class ListPrompts(IndexedPrompts):
    """Texts given in code or in the YAML, numbered from 0.

    Args:
        prompts: the texts.
        name: half of every prompt's id.

    Raises:
        UserError: if there is none, or one is no text.
    """

    def __init__(self, prompts: list[str], name: str = "list") -> None:
        if not prompts:
            raise UserError("ListPrompts: expected at least one prompt, got none. Give it a list of texts.")
        for row, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise UserError(
                    f"ListPrompts, prompt {row} (counted from 0): expected a text, got {shown(prompt)}. Give it a list of texts."
                )
        self.prompts = prompts
        self.name = name

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        row = range(len(self))[index]
        return Prompt(prompt_id(self.name, row), self.prompts[row])
