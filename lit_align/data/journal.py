"""Labels on disk before they are used: a kill asks again at most the chunk in flight, a resume asks for none twice."""

import hashlib
import json
import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from lit_align.types import Annotation, Annotator, Rollouts, Stream, UserError


class _Key(NamedTuple):
    stream: str
    rollout: int
    prompt: int
    occurrence: int
    content: str  # hash of what was labelled, and by whom


class _Labels(NamedTuple):
    scores: list[float | None]  # [K]; None where invalid
    preferences: list[list[float | None]] | None  # [K, K]; None where not asked
    mass: list[float | None] | None = None  # [K]
    parts: dict[str, list[float | None]] | None = None  # [K] each
    seen_first: list[list[float | None]] | None = None  # [K, K]; None where not asked


@final
class LabelJournal:
    """An append-only file of labels per rank, ``labels-{rank}.jsonl``; one line holds the ``K`` labels of one prompt.

    At opening every rank reads the files of all ranks, so that the number of ranks may change between runs; it then writes
    to its own file only. Open it on all ranks before the first of them annotates.

    Args:
        folder: where the files are; made if missing.
        rank: whose file to append to. Of a line that was torn by a kill, the rest is cut off this file, and ignored in others.

    Attributes:
        labels_written: labels that this process asked for: responses, valid or not.

    Raises:
        UserError: if a whole line is no line of a journal.
    """

    def __init__(self, folder: Path, rank: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f"labels-{rank}.jsonl"
        self.labels_written = 0
        self._labels_read = 0
        self._known: dict[_Key, _Labels] = {}
        for path in sorted(folder.glob("labels-*.jsonl")):
            size = self._read(path)
            if path == own and size < path.stat().st_size:
                os.truncate(path, size)
        self._read_of: Counter[tuple[str, int]] = Counter()  # by stream and rollout
        for (name, rollout, *_), count in {key[:4]: len(labels.scores) for key, labels in self._known.items()}.items():
            self._read_of[name, rollout] += count
        self._file = own.open("ab")
        _sync_folder(folder)

    @property
    def labels_used(self) -> int:
        """Labels asked for so far, valid or not and again asked ones included: those in all files at opening, and this
        process's own since. The total of a run of several ranks is ``labels_used - labels_written``, the same on each, plus
        the sum of ``labels_written`` over them."""
        return self._labels_read + self.labels_written

    def labels_read_of(self, stream: Stream) -> int:
        """How many labels of a rollout all ranks' files had at opening, the latest of each prompt; the same on every rank."""
        return self._read_of[stream.name, stream.rollout]

    def annotate(self, annotator: Annotator, rollouts: Rollouts, stream: Stream) -> Annotation:
        """Labels of these rollouts on the CPU, in their order: from the journal where it has them, else asked for in one
        call, committed to disk, then returned. First answer and replay are equal to the bit.

        A prompt's labels are those of (``stream.name``, ``stream.rollout``, prompt id, occurrence), if its content, its
        reference, its ``meta``, its responses and the annotator's ``identity`` and ``version`` are what they were then; else it is asked
        for again. Every line says the identity: of a judge, with the hash of its template's words.

        Raises:
            UserError: if the annotator's answer has the wrong shape, or an infinite or NaN score that it calls valid, or a
                preference that is no probability. None of that answer is kept.
        """
        version = annotator.version  # of the labels that are asked for, whatever it learns from the asking
        keys = [_key(rollouts, row, stream, annotator) for row in range(len(rollouts.prompts))]
        missing = [row for row, key in enumerate(keys) if key not in self._known]
        if missing:
            if self._file.closed:
                raise ValueError("This journal is closed: a label could not be committed before it is used.")
            asked = rollouts.rows(missing)
            labels = _labels(annotator.annotate(asked), asked, annotator)
            self._commit([keys[row] for row in missing], labels, annotator.identity)
        return _annotation([self._known[key] for key in keys], rollouts, version)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _commit(self, keys: list[_Key], labels: list[_Labels], who: str) -> None:
        lines = [
            {**key._asdict(), **label._asdict(), "labels": len(label.scores), "annotator": who}  # flat, so that it can be read as a table
            for key, label in zip(keys, labels, strict=True)
        ]
        self._file.write("".join(json.dumps(line, allow_nan=False) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._known.update(zip(keys, labels, strict=True))
        self.labels_written += sum(line["labels"] for line in lines)

    def _read(self, path: Path) -> int:
        """Take in the whole lines of a file; the number of bytes they are."""
        content = path.read_bytes()
        size = content.rfind(b"\n") + 1
        for number, text in enumerate(content[:size].split(b"\n")[:-1], start=1):
            try:
                line: dict[str, Any] = json.loads(text)
                key = _Key(**{name: line[name] for name in _Key._fields})
                self._known[key] = _Labels(line["scores"], *(line.get(name) for name in _Labels._fields[1:]))
                self._labels_read += line["labels"]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(
                    f"{path}, line {number}: expected a line of a label journal, but it can't be read ({error!r}). "
                    "Something else wrote to the file: delete the line, and its labels are asked for again."
                ) from error
        return size


def _key(rollouts: Rollouts, row: int, stream: Stream, annotator: Annotator) -> _Key:
    prompt = rollouts.prompts[row]
    content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
    who = [annotator.identity, annotator.version]
    said = [content, prompt.reference, dict(prompt.meta), rollouts.texts[row], who]
    text = json.dumps(said, sort_keys=True, default=lambda value: type(value).__name__)  # an image's repr is another one in every process
    digest = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    return _Key(stream.name, stream.rollout, prompt.id, int(rollouts.occurrences[row]), digest)


def _labels(answer: Annotation, asked: Rollouts, annotator: Annotator) -> list[_Labels]:
    """The answer, checked, as rows of Python numbers."""
    prompts, responses = asked.response_tokens.shape[:2]
    who = type(annotator).__name__
    for name, tensor, letters in answer.tensors():
        expected = (prompts, responses, responses)[: len(letters)]
        if tuple(tensor.shape) != expected:
            raise UserError(
                f"{who}.annotate should return {name} of shape {list(expected)} for {prompts} prompts with {responses} responses each, "
                f"but returned {list(tensor.shape)}. Return one entry per response, in the order of the rollouts, with valid=False where "
                "there is none."
            )
    if answer.valid.dtype != torch.bool:
        raise UserError(f"{who}.annotate should return valid as bool, but returned {answer.valid.dtype}. Convert it with `valid.bool()`.")
    scores, valid = answer.scores.detach().float().cpu(), answer.valid.cpu()  # [B, K]
    if not scores.isfinite().where(valid, True).all():
        row, k = (~scores.isfinite() & valid).nonzero()[0].tolist()
        raise UserError(
            f"{who}.annotate should return finite scores where valid is True, but the score of prompt {row}, response {k} of its chunk "
            f"(counted from 0) is {scores[row, k].item()}. Set valid=False where there is no score."
        )
    for name, said in (("preferences", answer.preferences), ("seen_first", answer.seen_first)):
        if said is not None and not ((said >= 0) & (said <= 1)).where(~said.isnan(), True).all():
            known = said[~said.isnan()]
            raise UserError(
                f"{who}.annotate should return {name} that are probabilities, or NaN where not asked, but they range from "
                f"{known.min().item()} to {known.max().item()}. Return P(i beats j) in [0, 1]."
            )
    score_rows = _rows_with_none(scores, valid)
    preference_rows, mass_rows, first_rows = map(_optional_rows, (answer.preferences, answer.mass, answer.seen_first))
    parts = {name: _optional_rows(part) for name, part in answer.parts.items()}
    return [
        _Labels(score_rows[b], preference_rows[b], mass_rows[b], {name: part[b] for name, part in parts.items()} or None, first_rows[b])
        for b in range(prompts)
    ]


def _optional_rows(values: Tensor | None) -> Any:
    """Nested lists with None for what is not finite; None at every row if there are no values."""
    if values is None:
        return defaultdict(lambda: None)
    values = values.detach().float().cpu()
    return _rows_with_none(values, values.isfinite())


def _rows_with_none(values: Tensor, known: Tensor) -> list[Any]:
    """Nested lists, as JSON can hold them: None where not ``known``. A float32 survives the way through Python's float."""

    def none_for_nan(value: Any) -> Any:
        return [none_for_nan(v) for v in value] if isinstance(value, list) else None if math.isnan(value) else value

    return none_for_nan(values.where(known, math.nan).tolist())


def _annotation(labels: list[_Labels], rollouts: Rollouts, version: int) -> Annotation:
    prompts, responses = rollouts.response_tokens.shape[:2]
    scores = _tensor([label.scores for label in labels]).reshape(prompts, responses)
    valid = ~scores.isnan()
    unknown: list[Any] = [None] * responses

    def known(name: str, without: list[Any]) -> Tensor | None:
        rows = [getattr(label, name) for label in labels]
        if all(row is None for row in rows):
            return None
        return _tensor([without if row is None else row for row in rows])

    names = dict.fromkeys(name for label in labels for name in label.parts or {})  # in their order
    return Annotation(
        scores=scores.where(valid, 0.0),
        valid=valid,
        preferences=known("preferences", [unknown] * responses),
        seen_first=known("seen_first", [unknown] * responses),
        mass=known("mass", unknown),
        parts={name: _tensor([(label.parts or {}).get(name, unknown) for label in labels]) for name in names},
        annotator_version=version,
    )


def _tensor(rows: list[Any]) -> Tensor:
    """Float32, with NaN for None."""

    def nan_for_none(value: Any) -> Any:
        return [nan_for_none(v) for v in value] if isinstance(value, list) else math.nan if value is None else value

    return torch.tensor(nan_for_none(rows), dtype=torch.float32)


def _sync_folder(folder: Path) -> None:
    """The file's name on disk too: without it a power cut may take a new file whose content was synced."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
