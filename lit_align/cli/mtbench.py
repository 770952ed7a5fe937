"""``lit-align mtbench``: questions with a follow-up, each answer graded from 1 to 10."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, final

import torch

from lit_align.annotators import ScoringJudge
from lit_align.cli.asking import LEDGER, asking
from lit_align.cli.parts import read_parts
from lit_align.cli.runs import refuse_existing
from lit_align.cli.sampling import Sampling, add_sampling_options, refuse_ignored, run_of, sampling_of, trained_for
from lit_align.cli.sources import slug, write_rows
from lit_align.data.sources.rows import prompt_id
from lit_align.evaluation.two_turn import GradeReport, Question, converse, graded, summarised
from lit_align.types import Annotator, IndexedPrompts, Prompt, UserError

DESCRIPTION = """\
Grade two-turn conversations. A SOURCE is a model (a folder or hub name, a run's folder, or one of a run's checkpoints), or
FILE.jsonl with conversations that this command wrote before."""


def mtbench(arguments: Sequence[str]) -> None:
    """Let every model answer both turns of every question, grade, print the report and write it beside conversations and grades.

    Args:
        arguments: sources and options; see ``--help``.

    Raises:
        UserError: if there are no questions of two turns, a source has no answers, or the judge gives no grades.
    """
    options = mtbench_parser().parse_args(list(arguments))
    output: Path = options.output
    if len({*options.sources}) < len(options.sources):
        raise UserError(f"Expected different sources, got {' '.join(options.sources)}. Name each once.")
    refuse_existing(output, LEDGER, "conversations")
    parts = read_parts(options.config)
    second = read_parts(options.second_config) if options.second_config else parts
    judges = [parts.judge, second.judge]
    for judge in judges:
        if not isinstance(judge, ScoringJudge):
            raise UserError(f"Expected a ScoringJudge, which grades from 1 to 10, got {type(judge).__name__}. Set it in --config.")
    questions, rows = read_questions(options.questions)
    models = [source for source in options.sources if not source.endswith(".jsonl")]
    if not models:
        refuse_ignored(options)
    sampling = sampling_of(options, parts.sampler, models)
    found: dict[str, list[tuple[str | None, ...]]] = {}
    for source in options.sources:
        if source in models:
            found[source] = _Policy(sampling, source).answers(questions)
            known = _trained_for(source)
            said = [row | {"answers": list(texts), "trained_for": known} for row, texts in zip(rows, found[source], strict=True)]
            write_rows(output / "conversations" / f"{slug(source)}.jsonl", said)
        else:
            found[source] = _stored(source, questions)
    own = [source for source in options.sources if _trained_for(source) in {judge.identity for judge in judges}]

    with asking(judges, output, {**parts.prices, **second.prices}):
        grades = {source: graded(questions, answers, judges) for source, answers in found.items()}
    if all(bool(each.isnan().all()) for each in grades.values()):
        raise UserError(
            f"Expected grades, but the judge gave none that is valid, for {len(questions)} questions. Its warnings above say what is wrong."
        )
    models_grades = {source: summarised(questions, each, seed=options.seed) for source, each in grades.items()}
    report = GradeReport(_identity(judges), len(questions), 0.95, models_grades, own)
    write_rows(output / "grades.jsonl", list(_grade_rows(questions, grades)))
    (output / "report.json").write_text(report.json, encoding="utf-8")
    (output / "report.md").write_text(report.markdown, encoding="utf-8")
    print(report.markdown)
    print(f"Numbers, conversations and every grade are in {output}.")


def mtbench_parser(add_help: bool = True) -> argparse.ArgumentParser:
    """What ``lit-align mtbench`` takes."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("lit-align mtbench", description=DESCRIPTION, add_help=add_help, formatter_class=raw)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="whose answers to grade")
    parser.add_argument("--questions", required=True, help="JSONL file: prompt and followups, or turns; category, references where known")
    parser.add_argument("--config", action="append", default=[], help="file that sets a ScoringJudge, data.init_args.annotator")
    parser.add_argument("--second_config", action="append", default=[], help="one for the second turn; --config's judge if not given")
    add_sampling_options(parser)
    parser.add_argument("--output", type=Path, default=Path("runs/mtbench"), help="folder to write; runs/mtbench if not given")
    return parser


def read_questions(path: str) -> tuple[list[Question], list[dict[str, Any]]]:
    """The questions of two turns in a file, and their rows; others are left out, which is said.

    A row has ``prompt`` and ``followups``, or ``turns``, and may have ``category`` and reference answers turn by turn in ``references``,
    ``reference`` or ``gpt4_reference``.

    Raises:
        UserError: if there is no such file, a row is no question, or none has two turns.
    """
    questions, rows, others = [], [], 0
    for number, row in _rows(path):
        turns = row.get("turns") or [row.get("prompt"), *(row.get("followups") or [])]
        if not all(isinstance(turn, str) for turn in turns):
            raise UserError(
                f"{path}, line {number + 1}: expected a question's texts in 'prompt' and 'followups', or in 'turns', but found "
                f"{', '.join(row) or 'nothing'}."
            )
        if len(turns) != 2:
            others += 1
            continue
        known = next((row[name] for name in ("references", "reference", "gpt4_reference") if row.get(name)), [])
        references = tuple(known[turn] if turn < len(known) else None for turn in range(2))
        questions.append(Question(prompt_id(Path(path).stem, number), tuple(turns), references, str(row.get("category") or "")))
        rows.append(row)
    if not questions:
        raise UserError(f"{path}: expected questions of two turns, but none of {others} rows has a prompt and one follow-up.")
    if others:
        print(f"{others} rows of {path} are no questions of two turns, and left out.")
    return questions, rows


@final
class _Policy:
    """A model that answers prompts of messages one after the other, or leaves those out that are too long for it."""

    def __init__(self, sampling: Sampling, source: str) -> None:
        self.sampling, self.policy, self.turn = sampling, sampling.policy(source), 0

    def answers(self, questions: Sequence[Question]) -> list[tuple[str | None, ...]]:
        """To both turns of every question."""
        return converse(questions, self._ask)

    def _ask(self, prompts: Sequence[Prompt]) -> list[str | None]:
        self.turn += 1
        chunks = self.sampling.answers(self.policy, _Given(prompts), 1, f"mtbench turn {self.turn}")
        said = {prompt.id: texts[0] for chunk in chunks for prompt, texts in zip(chunk.prompts, chunk.texts, strict=True)}
        return [said.get(prompt.id) for prompt in prompts]


@final
class _Given(IndexedPrompts):
    """Prompts that are there already."""

    def __init__(self, prompts: Sequence[Prompt]) -> None:
        self.prompts, self.name = prompts, "questions"

    def __len__(self) -> int:
        return len(self.prompts)

    def __getitem__(self, index: int) -> Prompt:
        return self.prompts[index]


def _stored(path: str, questions: Sequence[Question]) -> list[tuple[str | None, ...]]:
    """Answers of an earlier call to the same questions."""
    told = {(row.get("prompt"), *(row.get("followups") or [])) if "prompt" in row else tuple(row["turns"]): row for _, row in _rows(path)}
    missing = [question.turns[0] for question in questions if question.turns not in told or "answers" not in told[question.turns]]
    if missing:
        raise UserError(
            f"{path}: expected 'answers' to all {len(questions)} questions, but {len(missing)} have none, such as {missing[0][:60]!r}. "
            "Give a file that this command wrote for the same --questions."
        )
    return [tuple(told[question.turns]["answers"]) for question in questions]


def _rows(path: str) -> Iterator[tuple[int, dict[str, Any]]]:
    file = Path(path)
    if not file.is_file():
        raise UserError(f"Expected a file at {path}, found none there (the current folder is {Path.cwd()}). Check the path.")
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines()):
        if line.strip():
            try:
                yield number, dict(json.loads(line))
            except ValueError as error:
                raise UserError(f"{path}, line {number + 1}: expected one JSON object, but {error}. Correct or delete the line.") from error


def _trained_for(source: str) -> str:
    run = run_of(source)
    if run is not None:
        return trained_for(run)
    return next((str(row.get("trained_for", "")) for _, row in _rows(source)), "") if source.endswith(".jsonl") else ""


def _identity(judges: Sequence[Annotator]) -> str:
    return ", then ".join(dict.fromkeys(judge.identity for judge in judges))


def _grade_rows(questions: Sequence[Question], grades: dict[str, torch.Tensor]) -> Iterator[dict[str, Any]]:
    for source, each in grades.items():
        for question, row in zip(questions, each.tolist(), strict=True):
            yield {"answers": source, "question": question.turns[0], "grades": [None if grade != grade else grade for grade in row]}
