"""Labels that people write into a file."""

import json
import math
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch

from lit_align.types import Annotation, Annotator, Prompt, Rollouts, UserError

POLL_SECONDS = 5.0  # between two looks at the file


@final
class LabelFile(Annotator):
    """Scores of a file with one JSON object per line, ``{"prompt": ..., "response": ..., "score": ...}``; larger is better.

    The prompt is a text or a list of messages, as the policy's data have it. Of several lines about one response the last counts. The
    file is read anew for every chunk of responses, so that people may write it while the run goes on: what it has no score for is
    appended to ``waiting``, without one, and waited for as long as ``patience_minutes``. What is without a score then is invalid, and
    stays so for this rollout.

    On several ranks all write to the same ``waiting``, and those that wait for nobody wait for the others: patience should be less than
    the time-out of the process group.

    Args:
        path: the file; ``$VARIABLES`` are expanded. It may be missing as long as nobody has written anything.
        waiting: where to write what should be labelled; null for nowhere.
        patience_minutes: how long to wait for labels of a chunk.

    Raises:
        UserError: if ``patience_minutes`` is negative, or positive with nowhere to say what is waited for; when the file is read, if a
            line is no such object.
    """

    def __init__(self, path: str, waiting: str | None = None, patience_minutes: float = 0.0) -> None:
        if not patience_minutes >= 0 or (patience_minutes and waiting is None):
            raise UserError(
                "LabelFile: patience_minutes should be 0, or positive with a `waiting` file that says what to label, got "
                f"{patience_minutes} and {waiting}."
            )
        self.path, self.patience_minutes = Path(os.path.expandvars(path)), patience_minutes
        self.waiting = None if waiting is None else Path(os.path.expandvars(waiting))
        self.identity = f"LabelFile({path})"

    def annotate(self, rollouts: Rollouts) -> Annotation:
        """Scores ``[B, K]`` on the CPU."""
        wanted = [(p, text) for p, texts in zip(rollouts.prompts, rollouts.texts, strict=True) for text in texts]
        end, known = time.monotonic() + 60 * self.patience_minutes, self._read()
        self._write([(prompt, text) for prompt, text in wanted if _key(prompt.content, text) not in known])
        while time.monotonic() < end and any(_key(prompt.content, text) not in known for prompt, text in wanted):
            time.sleep(min(POLL_SECONDS, max(end - time.monotonic(), 0.0)))
            known = self._read()
        scores = torch.tensor([known.get(_key(p.content, text), math.nan) for p, text in wanted], dtype=torch.float32)
        scores = scores.reshape(rollouts.response_tokens.shape[:2])
        valid = scores.isfinite()
        return Annotation(scores=scores.where(valid, 0.0), valid=valid, annotator_version=self.version)

    def _read(self) -> dict[str, float]:
        """Every score in the file."""
        content = self.path.read_text(encoding="utf-8") if self.path.is_file() else ""
        whole = content[: content.rfind("\n") + 1]  # somebody may be writing the rest
        found = {}
        for number, line in enumerate(whole.split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row: dict[str, Any] = json.loads(line)
                if row.get("score") is not None:
                    found[_key(row["prompt"], row["response"])] = float(row["score"])
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(
                    f'{self.path}, line {number}: expected {{"prompt": ..., "response": ..., "score": NUMBER}}, but it can\'t be read as '
                    f"that ({error!r}): {line[:80]!r}."
                ) from error
        return found

    def _write(self, wanted: Sequence[tuple[Prompt, str]]) -> None:
        """Say what should be labelled, each once, in one piece."""
        if self.waiting is None or not wanted:
            return
        rows = {_key(prompt.content, text): {"prompt": _plain(prompt.content), "response": text, "score": None} for prompt, text in wanted}
        with self.waiting.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(row) + "\n" for row in rows.values()))


def _key(content: Any, text: str) -> str:
    return json.dumps([_plain(content), text], sort_keys=True)


def _plain(content: Any) -> Any:
    return content if isinstance(content, str) else [dict(message) for message in content]
