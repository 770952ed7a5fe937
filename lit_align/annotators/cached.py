"""Labels that several runs share: what was labelled once is not asked for again."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch

from lit_align.metering import current_meter, current_repeat
from lit_align.storage import Store, digest
from lit_align.types import Annotation, Annotator, Ask, Rollouts, UserError

FORMAT = 1  # of a row; part of its key

_Row = dict[str, Any]  # a prompt's numbers by field of `Annotation`, nested as the axes behind B


@final
class Cached(Annotator):
    """Another annotator that remembers its labels in a file, for every run that names the file.

    A prompt's ``K`` labels are found again if everything that they depend on is the same: the annotator's class, ``identity`` (in
    which a judge has its model and the hash of its template) and ``version``, the prompt with its reference, its other fields and its
    dataset, and the texts of the responses in their order; an annotator that looks at anything else should not be cached. First
    answer and hit are equal to the bit. Labels are committed before they are returned; rows with an invalid one are not kept, so that
    a failure is not remembered for good.

    Several processes of one machine may use a file at once, and any may be killed. Two that miss the same label at the same time both
    ask for it, and the first answer is kept.

    Args:
        annotator: who is asked for what is not there.
        path: the file, made if missing; ``$VARIABLES`` are expanded.

    Attributes:
        hits, misses: labels (responses) so far that were, and were not, in the file.

    Raises:
        UserError: if the annotator has no ``identity``: labels of another one could be taken for its own; when used, if the file is no
            cache, or the annotator's answer is not one row per prompt.
    """

    def __init__(self, annotator: Annotator, path: str) -> None:
        if not annotator.identity:
            raise UserError(
                f"Cached: {type(annotator).__name__} has no identity, so that labels of another one could be taken for its own. Set "
                "`self.identity` to a text with everything that changes its labels."
            )
        self.annotator, self.path = annotator, Path(os.path.expandvars(path)).expanduser()
        self.hits = self.misses = 0
        self._store: Store | None = None

    @property
    def identity(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The annotator's own: to a run's journal the labels are the same."""
        return self.annotator.identity

    @property
    def version(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The annotator's own."""
        return self.annotator.version

    @property
    def learns(self) -> bool:
        """Where the annotator does."""
        return self.annotator.learns

    @property
    def waits(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the annotator does."""
        return self.annotator.waits

    @property
    def log_odds(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Where the annotator's are."""
        return self.annotator.log_odds

    def setup(self, device: torch.device) -> None:
        """Wake the annotator."""
        self.annotator.setup(device)

    def close(self) -> None:
        """Close annotator and file; the next question opens them again."""
        self.annotator.close()
        if self._store is not None:
            self._store.close()
            self._store = None

    def learn(self, rollouts: Rollouts, ask: Ask) -> Mapping[str, float]:
        """Let the annotator learn."""
        return self.annotator.learn(rollouts, ask)

    def state_dict(self) -> dict[str, Any]:
        """The annotator's own."""
        return self.annotator.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The annotator's own."""
        self.annotator.load_state_dict(state)

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """The annotator's labels on the CPU, asked for in one call where the file has none."""
        self._store = self._store or Store(self.path)
        version, k = self.version, rollouts.response_tokens.shape[1]
        keys = _keys(
            rollouts, [type(self.annotator).__module__, type(self.annotator).__qualname__, self.identity, version, current_repeat()]
        )
        rows: dict[bytes, _Row] = {key: json.loads(text) for key, text in self._store.get(list(dict.fromkeys(keys))).items()}
        missing = {key: row for row, key in reversed(list(enumerate(keys))) if key not in rows}  # the first of equal ones
        if missing:
            asked = rollouts.rows(sorted(missing.values()))
            answers = dict(zip(sorted(missing, key=missing.__getitem__), _rows(self.annotator, asked), strict=True))
            self._store.put({key: json.dumps(row) for key, row in answers.items() if _worth_keeping(row)})
            rows |= answers
        misses = len(missing) * k
        self.misses += misses
        self.hits += len(keys) * k - misses
        current_meter().reused(len(keys) * k - misses)
        return _annotation([rows[key] for key in keys], version)


def _keys(rollouts: Rollouts, annotator: Sequence[object]) -> list[bytes]:
    """A key per prompt."""
    who, found = json.dumps([FORMAT, *annotator]), []
    for prompt, texts in zip(rollouts.prompts, rollouts.texts, strict=True):
        content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
        said = [content, prompt.reference, dict(prompt.meta), prompt.dataset, texts]
        found.append(digest(who + json.dumps(said, sort_keys=True, default=repr)))
    return found


def _rows(annotator: Annotator, asked: Rollouts) -> list[_Row]:
    """What the annotator says, a row per prompt; a float32 survives the way through Python's float."""
    answer = annotator.annotate(asked)
    expected = asked.response_tokens.shape[:2]
    if answer.scores.shape != expected:
        raise UserError(
            f"{type(annotator).__name__}.annotate should return scores of shape {list(expected)}, one row per prompt that it was asked "
            f"about, but returned {list(answer.scores.shape)}."
        )
    columns = {name: tensor.detach().cpu().tolist() for name, tensor, _ in answer.tensors()}
    return [{name: column[row] for name, column in columns.items()} for row in range(len(asked.prompts))]


def _worth_keeping(row: _Row) -> bool:
    """Whether every response has a score: an answer to be counted on, not a failure."""
    return all(row["valid"]) and all(map(math.isfinite, row["scores"]))


def _annotation(rows: Sequence[_Row], version: int) -> Annotation:
    """Rows as tensors; a field that some of them lack is NaN there."""
    shapes = {name: row[name] for row in rows for name in row}
    columns = {name: torch.tensor([row[name] if name in row else _nan_like(shape) for row in rows]) for name, shape in shapes.items()}
    parts = {name.removeprefix("parts."): columns.pop(name) for name in shapes if name.startswith("parts.")}
    return Annotation(**columns, parts=parts, annotator_version=version)


def _nan_like(values: Any) -> Any:
    return [_nan_like(value) for value in values] if isinstance(values, list) else math.nan
