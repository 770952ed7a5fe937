"""Options as token sequences: what each adds to a prompt, and how likely it is that this one, and no longer one, comes."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lit_align.types import UserError

Tokens = tuple[int, ...]


def suffixes(
    prompt: Sequence[int], continued: Sequence[Sequence[int]], options: Sequence[str], bos: int | None, eos: int | None
) -> tuple[list[int], list[Tokens]]:
    """The tokens that a prompt and all of its continuations begin with, and what each continuation adds to them.

    Prompt and option are tokenised together, as the model has learnt to read them: "Score: " and "7" may well be "Score", ":", " 7". An
    EOS that the tokenizer puts behind everything is taken off.

    Raises:
        UserError: if two options are the same tokens, or one is none.
    """
    sequences = [list(prompt), *map(list, continued)]
    if len(prompt) > 1 and all(tokens[-1:] == [eos] for tokens in sequences):
        sequences = [tokens[:-1] for tokens in sequences]
    low, high = min(sequences), max(sequences)  # what these two begin with, all do
    length = next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
    added = [tuple(tokens[length:]) for tokens in sequences[1:]]
    if () in added or len(set(added)) < len(added):
        readings = ", ".join(f"{option!r} as {list(tokens)}" for option, tokens in zip(options, added, strict=True))
        raise UserError(
            f"Expected a tokenizer that tells the options of a judge apart, but it reads {readings} after the prompt. "
            "Use a judge whose tokenizer knows digits."
        )
    start = [token for token in (bos, eos) if token is not None][:1]
    return sequences[0][:length] or start, added


def exclusive_logps(logps: Sequence[float], added: Sequence[Tokens]) -> Tensor:
    r"""Log-prob of each option without what belongs to longer options, ``[options]`` in float32.

    That a text begins with "1" includes that it begins with "10", if that is the token "1" and one more. So

    .. math:: q_i = p_i - \sum_{j \text{ extends } i} q_j

    which makes the events disjoint and ``sum q <= 1``. Where "10" is one token of its own, nothing is taken off.

    Args:
        logps: log-prob of each option's tokens, in nats.
        added: those tokens.

    >>> exclusive_logps([math.log(0.5), math.log(0.125)], [(1,), (1, 0)]).exp()
    tensor([0.3750, 0.1250])
    """
    exclusive = list(logps)
    for i in sorted(range(len(added)), key=lambda i: -len(added[i])):
        longer = [j for j in range(len(added)) if j != i and added[j][: len(added[i])] == added[i]]
        share = sum(math.exp(exclusive[j] - logps[i]) for j in longer if exclusive[j] > -math.inf)
        exclusive[i] = logps[i] + math.log1p(-share) if share < 1 else -math.inf
    return torch.tensor(exclusive, dtype=torch.float32)
