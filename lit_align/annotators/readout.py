"""What is read of an API's answer: how likely its first token is to be each verdict, or the verdict that it wrote."""

import json
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from openai.types.chat import ChatCompletion

Readout = Literal["logprobs", "text"]


def read_answer(completion: "ChatCompletion", readout: Readout) -> str:
    """What there is to keep of an answer, as JSON: the likeliest first tokens with their log-probs in nats, or the text.

    Raises:
        ValueError: if log-probs were asked for and there are none.
    """
    choice = completion.choices[0]
    if readout == "text":
        return json.dumps({"text": choice.message.content or ""})
    if choice.logprobs is None or choice.logprobs.content is None:
        raise ValueError("an answer without logprobs")
    first = choice.logprobs.content[0].top_logprobs if choice.logprobs.content else []
    return json.dumps({"logprobs": [(top.token, top.logprob) for top in first if math.isfinite(top.logprob)]})


def option_logps(answer: str | None, options: Sequence[str]) -> list[float]:
    r"""Log-probs of the options in nats, of what `read_answer` kept.

    Of log-probs: those of the tokens that are the option, white space around it aside, and ``-inf`` where none is. Of a text: 0 for the
    option that it is, white space aside, and ``-inf`` for the others. A text that is no option, and no answer at all, give NaN.

    >>> option_logps('{"text": " 7\\n"}', ("6", "7"))
    [-inf, 0.0]
    >>> option_logps('{"text": "7 of 10"}', ("6", "7"))
    [nan, nan]
    """
    kept = {} if answer is None else json.loads(answer)
    if "logprobs" in kept:
        return [_log_sum([logp for token, logp in kept["logprobs"] if token.strip() == option]) for option in options]
    if (said := kept.get("text", "").strip()) not in options:
        return [math.nan] * len(options)
    return [0.0 if said == option else -math.inf for option in options]


def probe_of(options: Sequence[str]) -> str:
    """A question whose answer shows whether log-probs can be read: the longest option is the one that may be several tokens."""
    return f"Answer with {_longest(options)} and nothing else."


def decide(completion: "ChatCompletion", options: Sequence[str]) -> str:
    """What the answer to `probe_of` shows, as JSON: the read-out, and why it is not the log-probs'.

    Log-probs are those of one token, so an option of several characters has to be one. If the longest is, so are the others: the
    digits of a number are one token up to some length.
    """
    try:
        tokens = {token.strip() for token, _ in json.loads(read_answer(completion, "logprobs"))["logprobs"]}
    except ValueError:
        return undecided("the server gives no logprobs")
    longest = _longest(options)
    if not tokens:
        return undecided("the server gives empty logprobs")
    if len(longest) > 1 and longest not in tokens:
        return undecided(f"{longest!r} is no single token of this model; where verdicts are grades, a `scale` from 0 to 9 or A to J is")
    return json.dumps({"readout": "logprobs"})


def undecided(because: str, words: str = "") -> str:
    """A decision against log-probs, as JSON, with the server's words if it had any."""
    return json.dumps({"readout": "text", "because": f"{because} ({words})" if words else because})


def _longest(options: Sequence[str]) -> str:
    return max(options, key=len)


def _log_sum(logps: Sequence[float]) -> float:
    """``log(sum(exp))``; of one number, itself."""
    largest = max(logps, default=-math.inf)
    return largest if len(logps) < 2 else largest + math.log(sum(math.exp(logp - largest) for logp in logps))
