"""Turns that follow a conversation, as the chat template writes them, and which of their tokens the assistant says."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, final

from lit_align.models.chat import Options, render
from lit_align.types import Message, UserError


@final
@dataclass(frozen=True)
class TurnEncoder:
    """Encodes answers by a chat template.

    A template that marks what is generated (``{% generation %}``) is taken at its word. Of any other, what a turn of the assistant adds
    is found by rendering the conversation up to where that turn begins, and again up to where it ends: the first must be how the
    second begins, or the policy would learn an answer to another prompt than it will be asked.

    A turn ends with its first token of ``ends`` or, where it has none, with the special token behind which nothing but white space
    follows; what the template writes after that is not learnt. After the last turn of a template that marks no end, ``end`` is.

    Args:
        owner: whose template it is, for messages.
        tokenizer: has the template.
        options: what else to tell it.
        ends: ids that end a response.
        special: ids of all special tokens.
        end: the one of ``ends`` to write where the template writes none.
    """

    owner: str
    tokenizer: Any
    options: Options
    ends: frozenset[int]
    special: frozenset[int]
    end: int

    def encode(self, prompt: Sequence[Message], turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """Token ids of ``turns`` after those of ``prompt``, up to the end of the assistant's last one, and which of them it says.

        Raises:
            UserError: if there is no template, it takes no such messages, none of them is the assistant's, or it writes a turn
                in another way when that is over.
        """
        if all(turn["role"] != "assistant" for turn in turns):
            raise UserError(
                f"{self.owner}: expected an answer with a turn of the assistant, got {list(map(dict, turns))}. Correct the data."
            )
        start = self._tokens(self._text(prompt, answer=True))
        return self._marked(start, [*prompt, *turns]) or self._rendered(start, prompt, turns)

    def _marked(self, start: list[int], messages: Sequence[Message]) -> tuple[list[int], list[bool]] | None:
        """By the template's own marks; None where it has none, or begins another way than the prompt."""
        if "generation %}" not in self.tokenizer.get_chat_template(tools=(self.options or {}).get("tools")).replace("-%}", " %}"):
            return None
        found = self.tokenizer.apply_chat_template(
            [dict(message) for message in messages], return_dict=True, return_assistant_tokens_mask=True, **(self.options or {})
        )
        tokens, said = list(found["input_ids"]), [bool(mark) for mark in found["assistant_masks"]]
        length = max((i for i, mark in enumerate(said, start=1) if mark), default=0)
        if tokens[: len(start)] != start or length <= len(start):
            return None
        return tokens[len(start) : length], said[len(start) : length]

    def _rendered(self, start: list[int], prompt: Sequence[Message], turns: Sequence[Message]) -> tuple[list[int], list[bool]]:
        """By rendering up to the beginning and the end of every turn."""
        tokens, said, tail, text = start, list[bool](), list[int](), self._text(prompt, answer=True)
        answer: list[int] = []
        for i, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            before, whole = self._text([*prompt, *turns[:i]], answer=True), self._text([*prompt, *turns[: i + 1]], answer=False)
            asked = self._continued(tokens, tail, text, before)
            spoken = None if asked is None else self._spoken(tokens + asked, before, whole)
            if asked is None or spoken is None:
                raise self._rewritten(text if asked is None else before, before if asked is None else whole)
            answer, tail, text = spoken
            tokens = tokens + asked + answer
            said += [False] * len(asked) + [True] * len(answer)
        if self._length(answer) is None:
            tokens, said = [*tokens, self.end], [*said, True]
        return tokens[len(start) :], said

    def _spoken(self, tokens: list[int], before: str, whole: str) -> tuple[list[int], list[int], str] | None:
        """The answer in ``whole`` up to its end, what the template writes behind that, and the text of both with all before; None if
        it begins in another way than ``before``, the text of ``tokens``."""
        answer = self._continued(tokens, [], before, whole)
        if answer is None:
            return None
        length = self._length(answer)
        if length is None:  # no end is marked, and the white space is the template's
            bare = whole.rstrip()
            return self._continued(tokens, [], before, bare) or [], [], bare
        return answer[:length], answer[length:], whole

    def _continued(self, tokens: list[int], tail: list[int], text: str, longer: str) -> list[int] | None:
        """What follows ``tokens`` in the longer text: ``tail`` is what the template wrote after them, ``text`` is all of it.

        Tokenised together where that leaves what there is as it is; else the new part alone; None if it is no continuation.
        """
        joint = self._tokens(longer)
        if joint[: len(tokens)] == tokens:
            return joint[len(tokens) :]
        return tail + self._tokens(longer[len(text) :]) if longer.startswith(text) else None

    def _length(self, answer: list[int]) -> int | None:
        """Tokens up to the end of the turn; None where nothing marks it."""
        for i, token in enumerate(answer, start=1):
            if token in self.ends:
                return i
        length = max((i for i, token in enumerate(answer, start=1) if token in self.special), default=0)
        return length if length and not self.tokenizer.decode(answer[length:]).strip() else None

    def _rewritten(self, before: str, after: str) -> UserError:
        apart = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(before, after, strict=False)))
        seen, written = (repr(text[max(apart - 30, 0) : apart + 30]) for text in (before, after))
        return UserError(
            f"{self.owner}: the chat template of {self.tokenizer.name_or_path!r} writes {seen} before a turn and {written} after it, so "
            "that nobody can say which tokens the turn is. "
            "Mark it in the template with {% generation %}...{% endgeneration %}, or give another one: `chat_template: FILE.jinja`. If "
            "it writes only earlier turns in another way, learn last turns alone: `every_turn: false` of `lit_align.data.Demonstration`."
        )

    def _text(self, messages: Sequence[Message], answer: bool) -> str:
        return render(self.owner, self.tokenizer, messages, answer=answer, options=self.options)

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])
