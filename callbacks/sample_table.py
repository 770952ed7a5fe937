"""What the policy says, to be read by people."""

import html
import json
from pathlib import Path
from typing import Any, final

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from callbacks._logging import log_text
from lit_align.types import AlignmentBatch, Annotation, Diagnostics, Message, RolloutCallback, Rollouts, UserError

_COLUMNS = ("scores", "valid", "finished", "weights", "kl")
_MARKDOWN = {ord(c): f"&#{ord(c)};" for c in "\\`*_[]|~"} | {ord("\n"): "<br>"}


@final
class SampleTable(RolloutCallback):
    """Shows what the policy writes: a few prompts as a table under ``samples``, all of the rollout in a file.

    The file is ``samples/rollout-000012.jsonl`` in the run's folder, with ``-rank-1`` and so on for the other ranks' prompts:
    one line per prompt with its ``id``, ``prompt``, ``responses``, and one entry per response of ``scores`` (the annotator's, null
    where it gave none), ``valid`` (whether it is trained on), ``finished``, ``weights`` and ``kl`` (log pi_t - log pi_ref, in nats),
    the last two where the algorithm has them.

    Args:
        every_n_rollouts: how often.
        prompts: how many are in the table; the file has them all.

    Raises:
        UserError: if ``every_n_rollouts`` or ``prompts`` is not positive.
    """

    def __init__(self, every_n_rollouts: int = 1, prompts: int = 4) -> None:
        if every_n_rollouts < 1 or prompts < 1:
            raise UserError(f"SampleTable counts from 1, got every_n_rollouts = {every_n_rollouts} and prompts = {prompts}.")
        self.every_n_rollouts, self.prompts = every_n_rollouts, prompts

    def on_rollout_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        rollouts: Rollouts,
        annotation: Annotation,
        batch: AlignmentBatch,
        diagnostics: Diagnostics,
    ) -> None:
        """Write the file, then the table."""
        rollout = trainer.current_epoch
        if rollout % self.every_n_rollouts or not rollouts.prompts:
            return
        rows = _rows(rollouts, annotation, batch)
        rank = f"-rank-{trainer.global_rank}" if trainer.global_rank else ""
        file = Path(trainer.default_root_dir) / "samples" / f"rollout-{rollout:06d}{rank}.jsonl"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        log_text(trainer, "samples", _table(rows[: self.prompts]), rollout)


def _rows(rollouts: Rollouts, annotation: Annotation, batch: AlignmentBatch) -> list[dict[str, Any]]:
    """One per prompt."""
    columns: dict[str, Tensor] = {"valid": batch.valid, "finished": batch.finished}
    if batch.weights is not None:
        columns["weights"] = batch.weights
    if batch.reference_logps is not None:
        columns["kl"] = batch.sampling_response_logps - batch.reference_response_logps
    rows = []
    for i, (prompt, texts) in enumerate(zip(rollouts.prompts, rollouts.texts, strict=True)):
        content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
        given = zip(annotation.scores[i].tolist(), annotation.valid[i].tolist(), strict=True)
        row = {"id": prompt.id, "prompt": content, "responses": list(texts), "scores": [score if ok else None for score, ok in given]}
        rows.append(row | {name: column[i].tolist() for name, column in columns.items()})
    return rows


def _table(rows: list[dict[str, Any]]) -> str:
    """Markdown, a line per response."""
    names = [name for name in _COLUMNS if name in rows[0]]
    lines = ["| prompt | response | " + " | ".join(names) + " |", "|---" * (len(names) + 2) + "|"]
    for row in rows:
        for k, response in enumerate(row["responses"]):
            cells = [_cell(_read(row["prompt"])) if k == 0 else "", _cell(response), *(_number(row[name][k]) for name in names)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _read(content: str | list[Message]) -> str:
    return content if isinstance(content, str) else "\n".join(f"{message['role']}: {message['content']}" for message in content)


def _cell(text: str) -> str:
    """As it is: nothing in it is read as Markdown or HTML."""
    return html.escape(text, quote=False).translate(_MARKDOWN)


def _number(value: float | bool | None) -> str:
    if value is None:
        return "-"
    return ("yes" if value else "no") if isinstance(value, bool) else f"{value:.3g}"
