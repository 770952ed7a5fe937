"""Answers that the data have, as token ids, and rows of them as a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lit_align.data.messages import as_chat
from lit_align.types import AlignmentBatch, Answer, EncodedPrompt, Prompt, TextModel


@dataclass(frozen=True, slots=True)
class Response:
    """Tokens of one answer, which of them are learnt, whether it is whole, and its score if it has one."""

    tokens: list[int]
    learnt: list[bool]
    finished: bool
    score: float | None


@dataclass(frozen=True, slots=True)
class FixedRow:
    """A prompt and its answers; ``id`` is the prompt's."""

    id: int
    prompt_tokens: list[int]
    responses: list[Response]


def encoded(model: TextModel, prompt: EncodedPrompt, answers: Sequence[Answer], longest: int) -> FixedRow:
    """A row as the model reads it, answers cut after ``longest`` tokens.

    A conversation of which every turn is learnt begins to be a response where the assistant first speaks, and what comes before its
    last answer has as much room as it has as a prompt. If that was cut at its beginning, only the last answer is learnt.
    """
    source = prompt.prompt
    if len(answers) == 1 and answers[0].conversation and list(prompt.tokens) == model.encode(source):
        return _whole_conversation(model, source, answers[0], longest + len(prompt.tokens))
    responses = []
    for answer in answers:
        if isinstance(answer.content, str):
            tokens = model.encode_response(source, answer.content)
            learnt = [True] * len(tokens)
        else:
            tokens, learnt = model.encode_turns(source, answer.content)
        responses.append(_cut(tokens, learnt, longest, answer.score))
    return FixedRow(source.id, list(prompt.tokens), responses)


def packed(rows: Sequence[FixedRow], pad_id: int, optimizer_steps: Tensor, at_least: int = 1) -> AlignmentBatch:
    """The rows as one batch: K is the largest number of answers, or ``at_least``; where a row has fewer, responses without a token
    follow that are not valid."""
    k = max(at_least, *(len(row.responses) for row in rows))
    nothing = Response([], [], False, None)
    grid = [[*row.responses, *[nothing] * (k - len(row.responses))] for row in rows]
    p, t = max(len(row.prompt_tokens) for row in rows), max(len(one.tokens) for line in grid for one in line)
    return AlignmentBatch(
        prompt_tokens=torch.tensor([[pad_id] * (p - len(row.prompt_tokens)) + row.prompt_tokens for row in rows]),
        prompt_mask=torch.tensor([[i >= p - len(row.prompt_tokens) for i in range(p)] for row in rows]),
        response_tokens=torch.tensor([[one.tokens + [pad_id] * (t - len(one.tokens)) for one in line] for line in grid]),
        response_mask=torch.tensor([[[i < len(one.tokens) for i in range(t)] for one in line] for line in grid]),
        loss_mask=torch.tensor([[one.learnt + [False] * (t - len(one.tokens)) for one in line] for line in grid]),
        prompt_ids=torch.tensor([row.id for row in rows]),
        scores=torch.tensor([[one.score or 0.0 for one in line] for line in grid]),
        valid=torch.tensor([[one.score is not None for one in line] for line in grid]),
        finished=torch.tensor([[one.finished for one in line] for line in grid]),
        optimizer_steps=optimizer_steps,
    )


def _cut(tokens: list[int], learnt: list[bool], longest: int, score: float | None) -> Response:
    return Response(tokens[:longest], learnt[:longest], len(tokens) <= longest, score)


def _whole_conversation(model: TextModel, source: Prompt, answer: Answer, room: int) -> FixedRow:
    """All turns from the assistant's first answer on as the response, both together at most ``room`` tokens."""
    turns, last = as_chat(source.content), answer.content
    turns = (*turns, *([{"role": "assistant", "content": last}] if isinstance(last, str) else last))
    first = next(i for i, turn in enumerate(turns) if i and turn["role"] == "assistant")
    asked = replace(source, content=turns[:first])
    head = model.encode(asked)
    tokens, learnt = model.encode_turns(asked, turns[first:])
    return FixedRow(source.id, head, [_cut(tokens, learnt, room - len(head), answer.score)])
