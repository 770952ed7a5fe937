"""What ``lit-align judge`` compares: stored samples, a dataset's answers, or a model that answers now."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_align.cli.runs import built
from lit_align.cli.sampling import Sampling, data_part, run_of, runs_of, trained_for
from lit_align.data import JsonlPrompts
from lit_align.evaluation.answers import Answers
from lit_align.types import Prompt, PromptSource, UserError


def file_of(source: str) -> tuple[str, str | None] | None:
    """Path and column of ``FILE.jsonl`` or ``FILE.jsonl:COLUMN``; None of a model."""
    path, _, column = source.partition(".jsonl:")
    return (f"{path}.jsonl", column) if column else (source, None) if source.endswith(".jsonl") else None


def stored_answers(source: str) -> Answers:
    """Answers of a file: every row's ``responses``, as predict, SampleTable and judge write them, or its ``response``; or the answers
    that a dataset has in a column, which are then the references too.

    Raises:
        UserError: if the file has no prompts, or a row no answer.
    """
    path, column = file_of(source) or (source, None)
    prompts = tuple(JsonlPrompts(path, reference_field=column))
    if column is not None:
        return Answers(source, prompts, tuple((prompt.reference or "",) for prompt in prompts))
    run = run_of(path)
    known = trained_for(run) if run else str(prompts[0].meta.get("trained_for", ""))
    return Answers(source, prompts, tuple(_responses(prompt, path) for prompt in prompts), known)


def generated_answers(source: str, prompts: PromptSource, responses: int, sampling: Sampling, file: Path) -> Answers:
    """What a model says now, kept in ``file``.

    Raises:
        UserError: if there is no such model.
    """
    policy, run = sampling.policy(source), run_of(source)
    chunks, known = list(sampling.answers(policy, prompts, responses, "judge")), trained_for(run) if run else ""
    asked = tuple(prompt for chunk in chunks for prompt in chunk.prompts)
    texts = tuple(row for chunk in chunks for row in chunk.texts)
    finished = [row for chunk in chunks for row in chunk.finished.tolist()]
    rows = [
        {"id": prompt.id, "prompt": content_of(prompt), "responses": list(said), "finished": ended, "trained_for": known}
        for prompt, said, ended in zip(asked, texts, finished, strict=True)
    ]
    write_rows(file, rows)
    return Answers(source, asked, texts, known)


def prompts_for(file: str | None, chat: bool, sources: Sequence[str]) -> PromptSource:
    """What models are asked: ``file``, else what the first file among the sources answers, else the held-out prompts of the first run.

    Raises:
        UserError: if there is none of them.
    """
    path = file or next((found[0] for source in sources if (found := file_of(source))), None)
    if path is not None:
        return JsonlPrompts(path, chat=chat)
    held_out = next((part for run in runs_of(sources) if (part := data_part(run, "eval_prompts"))), None)
    if held_out is None:
        raise UserError("There is nothing to answer: give --prompts FILE.jsonl. Only a run with eval_prompts brings prompts of its own.")
    return built(PromptSource, held_out)


def write_rows(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One JSON object per line."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def content_of(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as JSON has it."""
    return prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]


def slug(source: str) -> str:
    """A file's name of a source's."""
    return "".join(letter if letter.isalnum() or letter in "-._" else "-" for letter in source.strip("./"))


def _responses(prompt: Prompt, path: str) -> tuple[str, ...]:
    found = prompt.meta.get("responses", [prompt.meta.get("response")])
    if not isinstance(found, list) or not found or not all(isinstance(text, str) for text in found):
        columns = ", ".join(prompt.meta) or "nothing else"
        raise UserError(
            f"{path}: expected the answers to {str(prompt.content)[:60]!r} in 'responses', a list of texts, but beside the prompt there is "
            f"{columns}. Where a dataset has its answers in a column, write {path}:COLUMN."
        )
    return tuple(found)
