"""Messages as the chat template of a tokenizer joins them."""

import inspect
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from lit_align.types import Message, UserError

Options = Mapping[str, Any] | None
"""What else to tell a template."""

HEARD = {"tools", "documents"}  # of transformers' own arguments, those that are handed on to the template


def read_template(owner: str, path: str) -> str:
    """A Jinja file; ``$VARIABLES`` in its path are expanded.

    Raises:
        UserError: if it can't be read.
    """
    try:
        return Path(os.path.expandvars(path)).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{owner}: chat_template should be a readable Jinja file, got {path!r}: {error}.") from error


def check_options(owner: str, argument: str, tokenizer: Any, options: Options) -> None:
    """Refuse what a template would never hear of: it would be ignored, and the model would read another prompt than was meant.

    Args:
        owner: whose ``argument`` it is, for messages.
        tokenizer: its template is the one that will be used.
        options: what else to tell the template.

    Raises:
        UserError: if there is no template, an option is not the template's but the caller's to set, or the template does not
            contain its name.
    """
    if not options:
        return
    if tokenizer.chat_template is None:
        raise UserError(
            f"{owner}: {argument} is for a chat template, but the tokenizer of {tokenizer.name_or_path!r} has none. "
            f"Set `chat_template: FILE.jinja` of {owner}, or leave {argument} out."
        )
    taken = {"messages", *inspect.signature(tokenizer.apply_chat_template).parameters} - HEARD
    if clash := sorted(taken & options.keys()):
        raise UserError(f"{owner}: {argument} sets {', '.join(clash)}, which {owner} decides itself. Leave it out.")
    template = tokenizer.get_chat_template(tools=options.get("tools"))
    unknown = [name for name in options if not re.search(rf"\b{re.escape(name)}\b", template)]
    if unknown:
        raise UserError(
            f"{owner}: {argument} sets {', '.join(unknown)}, but the chat template of {tokenizer.name_or_path!r} never reads it. "
            "Look for the option's name in the template, which is in the model's chat_template.jinja or tokenizer_config.json."
        )


def render(owner: str, tokenizer: Any, messages: Sequence[Message], *, answer: bool, options: Options = None) -> str:
    """One text from messages; with ``answer``, up to where the model's own turn begins. Special tokens are the template's to
    write, BOS among them: tokenise the text without adding any.

    Raises:
        UserError: if there is no template, or it refuses these messages.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            f"{owner}: the prompt is a list of messages, but the tokenizer of {tokenizer.name_or_path!r} has no chat template. "
            f"Set `chat_template: FILE.jinja` of {owner} (configs/chat_template/plain.jinja is one), or give plain-text prompts."
        )
    turns = [dict(message) for message in messages]
    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer, **(options or {}))
    except TemplateError as error:
        roles = ", ".join(str(turn.get("role")) for turn in turns)
        raise UserError(
            f"{owner}: the chat template of {tokenizer.name_or_path!r} can't join messages of the roles {roles}. It says: {error}\n"
            "Change the messages, or give another template: `chat_template: FILE.jinja`."
        ) from error
