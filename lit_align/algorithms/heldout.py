"""What is said of held-out answers."""

from typing import Any

import torch
from torch import Tensor

from lit_align.types import AlignmentBatch, Annotation, Rollouts, Samples


def sample_metrics(samples: Samples) -> dict[str, tuple[Tensor, Tensor]]:
    """Quantity of every response ``[B, K]``, and for which of them it counts; reward only where there is an annotator, and of every
    dataset where there are several."""
    rollouts, annotation = samples.rollouts, samples.annotation
    everything = torch.ones_like(rollouts.finished)
    metrics = {
        "response_length": (rollouts.response_mask.sum(-1).float(), everything),
        "finished": (rollouts.finished.float(), everything),
    }
    if annotation is None:
        return metrics
    metrics["reward"] = annotation.scores, annotation.valid
    metrics |= {f"reward/{name}": (part, part.isfinite()) for name, part in annotation.parts.items()}
    for name in samples.datasets:
        of_it = torch.tensor([[prompt.dataset == name] for prompt in rollouts.prompts], device=annotation.valid.device)
        metrics[f"reward/{name}"] = annotation.scores, annotation.valid & of_it
    return metrics


def unlabelled_batch(rollouts: Rollouts) -> AlignmentBatch:
    """Rollouts that nobody scored, as what a policy reads."""
    nothing = torch.zeros_like(rollouts.finished)
    return AlignmentBatch.of(rollouts, Annotation(scores=nothing.float(), valid=nothing))


def prediction_rows(samples: Samples) -> list[dict[str, Any]]:
    """One JSON row per prompt: id, prompt, responses, log-probs in nats, finished, and scores (null where invalid)."""
    rollouts, annotation = samples.rollouts, samples.annotation
    logps, rows = rollouts.sampling_logps.sum(-1), []
    for i, (prompt, texts) in enumerate(zip(rollouts.prompts, rollouts.texts, strict=True)):
        content = prompt.content if isinstance(prompt.content, str) else [dict(message) for message in prompt.content]
        row = {"id": prompt.id, "prompt": content, "responses": list(texts), "logps": logps[i].tolist()}
        row["finished"] = rollouts.finished[i].tolist()
        if annotation is not None:
            scores, valid = annotation.scores[i].tolist(), annotation.valid[i].tolist()
            row["scores"] = [score if ok else None for score, ok in zip(scores, valid, strict=True)]
        rows.append(row)
    return rows
