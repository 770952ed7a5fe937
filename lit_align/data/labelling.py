"""Chunk after chunk of rollouts to be labelled; where the annotator waits for a network, the next is sampled meanwhile."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context

from lit_align.types import Annotation, Rollouts

Label = Callable[[Rollouts], Annotation]


def labelled(
    sampled: Iterable[Rollouts], label: Label, tell: Callable[[int, int], None], *, done: int, overlap: bool
) -> Iterator[tuple[Rollouts, Annotation]]:
    """Every chunk with its labels, in order.

    Args:
        sampled: chunks, each drawn when it is asked for.
        label: what to ask of each.
        tell: is told how many responses are sampled and how many labelled, after each chunk is sampled and again after it is labelled.
        done: responses that were labelled before these.
        overlap: label a chunk in another thread, which sees this one's context variables, while the next is drawn. No label is asked
            for before the one before is there, so that ``label`` never runs twice at once and an error ends the asking. Where this
            thread fails or is interrupted, labels that were asked for are waited for: they may have been paid.
    """
    drawn = done

    def count(answer: tuple[Rollouts, Annotation]) -> tuple[Rollouts, Annotation]:
        nonlocal done
        done += answer[0].finished.numel()
        tell(drawn, done)
        return answer

    with ThreadPoolExecutor(1) as pool:
        asked: tuple[Rollouts, Future[Annotation]] | None = None
        for rollouts in sampled:
            drawn += rollouts.finished.numel()
            tell(drawn, done)
            if not overlap:
                yield count((rollouts, label(rollouts)))
                continue
            if asked is not None:
                yield count((asked[0], asked[1].result()))
            asked = rollouts, pool.submit(copy_context().run, label, rollouts)
        if asked is not None:
            yield count((asked[0], asked[1].result()))
