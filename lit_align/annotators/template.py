"""What a judge is asked, as a YAML file with places for the texts."""

import difflib
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, final

import yaml

from lit_align.models.escaping import Escape
from lit_align.types import Prompt, UserError

Protocol = Literal["scoring", "pairwise", "rubric", "checklist", "constitution"]
PLACES: dict[Protocol, tuple[str, ...]] = {
    "scoring": ("prompt", "response"),
    "pairwise": ("prompt", "response_1", "response_2"),
    "rubric": ("prompt", "aspect", "response"),
    "checklist": ("prompt", "item", "response"),
    "constitution": ("prompt", "principle", "response_1", "response_2"),
}
OPTIONAL = "reference"  # a place that any template may have
PARTS = ("preamble", "sample", "ending")
# Of widespread chat templates. Whoever asks a server can't know its tokenizer, so no question has any of these.
CONTROLS = ("<|", "<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>", "<start_of_turn>", "<end_of_turn>")


@final
@dataclass(frozen=True, slots=True)
class Template:
    """Three texts that a judge reads one after the other: ``preamble`` (its role and what counts), ``sample`` (what it judges) and
    ``ending``, after which the next token is the verdict.

    Places are ``{prompt}`` and ``{response}``, or ``{response_1}`` and ``{response_2}`` where two are compared, and ``{reference}`` for
    the prompt's reference answer in a template that wants it. What is put there is taken literally, braces and all, but can't write the
    template's own tags (``<response>``) nor the control tokens of widespread chat templates: they get a backslash (`Escape`). Other braces
    mean themselves unless they enclose a single word.
    """

    name: str
    preamble: str
    sample: str
    ending: str

    @classmethod
    def load(cls, template: str, protocol: Protocol) -> "Template":
        """A shipped template by its name, such as ``helpfulness``, or your own by the path of its ``.yaml`` file.

        Raises:
            UserError: if there is none, a part is missing, empty or unknown, or its places are not those of the protocol.
        """
        where, content = _read(template, protocol)
        try:
            parts = yaml.safe_load(content)
        except yaml.YAMLError as error:
            raise UserError(f"{where}: expected YAML with the keys {', '.join(PARTS)}, but it can't be read: {error}") from error
        if not isinstance(parts, dict):
            raise UserError(f"{where}: expected a mapping with the keys {', '.join(PARTS)}, got {type(parts).__name__}.")
        _check_parts(parts, where)
        made = cls(template, **{part: parts[part].strip() for part in PARTS})
        made._check_places(where, protocol)
        return made

    @property
    def identity(self) -> str:
        """Name, and a hash of the words: labels of other words are other labels."""
        return f"{self.name}:{digest(self._text)}"

    def render(self, texts: Mapping[str, str]) -> str:
        """The whole text, with ``texts`` in their places, escaped."""
        pieces, escape = re.split(r"\{(\w+)\}", self._text), _escape(self._text)  # text, place, text, place, ..., text
        return "".join(escape(texts[piece]) if i % 2 else piece for i, piece in enumerate(pieces))

    def ask(self, prompt: Prompt, **texts: str) -> str:
        """The question about a prompt and what was said to it, ``texts`` by their places."""
        return self.render({"prompt": text_of(prompt), OPTIONAL: prompt.reference or "(none given)", **texts})

    @property
    def _text(self) -> str:
        return "\n\n".join((self.preamble, self.sample, self.ending))

    def _check_places(self, where: str, protocol: Protocol) -> None:
        expected, found = PLACES[protocol], re.findall(r"\{(\w+)\}", self._text)
        shown = " and ".join(f"{{{place}}}" for place in expected)
        for place in found:
            if place not in (*expected, OPTIONAL):
                raise UserError(f"{where}: {{{place}}} is no place of a {protocol} template, which has {shown}.{_nearest(place, expected)}")
        for place in expected:
            if found.count(place) != 1:
                raise UserError(
                    f"{where}: a {protocol} template has {shown} once each, but {{{place}}} is there {found.count(place)} times."
                )


def digest(text: str) -> str:
    """A hash that is short enough for a name."""
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


@lru_cache
def _escape(words: str) -> Escape:
    """What no text in a template of these words may write."""
    return Escape(tags=[tag[:-1] for tag in re.findall(r"</?[\w-]+>", words)], tokens=CONTROLS)


def text_of(prompt: Prompt) -> str:
    """A prompt as a judge reads it: plain text as it is, a conversation turn by turn under the speaker's name."""
    if isinstance(prompt.content, str):
        return prompt.content
    return "\n\n".join(f"{message['role'].capitalize()}: {message['content']}" for message in prompt.content)


def _read(template: str, protocol: Protocol) -> tuple[str, str]:
    """How messages should call it, and its content."""
    if not template.endswith((".yaml", ".yml")):
        folder = files("lit_align.annotators").joinpath("templates", protocol)
        shipped = sorted(file.name.removesuffix(".yaml") for file in folder.iterdir() if file.name.endswith(".yaml"))
        if template not in shipped:
            raise UserError(
                f"There is no {protocol} template {template!r}: expected one of {', '.join(shipped)}, or the path of a .yaml file of "
                f"your own.{_nearest(template, shipped)}"
            )
        return f"template {template}", folder.joinpath(f"{template}.yaml").read_text(encoding="utf-8")
    try:
        return template, Path(os.path.expandvars(template)).read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"template should be the name of a shipped one or a readable .yaml file, got {template!r}: {error}.\n"
            f"The current folder is {Path.cwd()}."
        ) from error


def _check_parts(parts: dict[Any, Any], where: str) -> None:
    for key in parts:
        if key not in PARTS:
            raise UserError(f"{where}: {key!r} is no part of a template, which has {', '.join(PARTS)}.{_nearest(str(key), PARTS)}")
    for part in PARTS:
        if not isinstance(parts.get(part), str) or not parts[part].strip():
            raise UserError(f"{where}: expected a text for {part!r}, got {parts.get(part)!r}.")


def _nearest(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(word, known, 1)
    return f" Did you mean {close[0]!r}?" if close else ""
