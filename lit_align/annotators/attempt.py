"""One call of an OpenAI-compatible server, and what may come instead of an answer."""

import asyncio
import email.utils
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, final

from lit_align.types import UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from openai.types.chat import ChatCompletion

TRY_AGAIN = (408, 409, 429)
UNREADABLE = ("context_length_exceeded", "maximum context length", "exceed_context_size", "content_filter")  # in words of a status 400


@final
@dataclass(frozen=True, slots=True)
class Question:
    """What to send, and what to make of what comes back.

    Args:
        key: all that the answer depends on, by which the meter knows it.
        old_key: by which an older meter may know it.
        request: of ``client.chat.completions.create``.
        read: what to keep of the answer; a ValueError says that it is none.
        rejected: what to keep where the server does not take such a request, from its words; None where that is a mistake.
    """

    key: str
    old_key: str
    request: Mapping[str, Any]
    read: Callable[["ChatCompletion"], str]
    rejected: Callable[[str], str] | None = None


class Answered(NamedTuple):
    """What was kept, and what it cost."""

    answer: str
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Unanswered(Exception):
    """An attempt that brought no answer.

    Args:
        reason: in words.
        paid: whether the server may have done the work, and charge for it.
        again: whether to ask again.
        wait: the seconds that the server asks to wait before.
    """

    def __init__(self, reason: str, *, paid: bool, again: bool = True, wait: float | None = None) -> None:
        super().__init__(reason)
        self.paid, self.again, self.wait = paid, again, wait


async def complete(client: "AsyncOpenAI", question: Question, timeout: float, key_name: str | None) -> Answered:
    """Ask once.

    Args:
        client: whose address and key to use; it must not retry by itself. The key is in no message, whatever the server says.
        question: what to ask.
        timeout: seconds for all of the call.
        key_name: the environment variable of the key, for messages.

    Raises:
        Unanswered: if there is no answer, but there may be one another time.
        UserError: if there will be none until something is changed.
    """
    import httpx2
    import openai
    from openai.types.chat import ChatCompletion

    def shown(words: str) -> str:
        return " ".join(words.replace(client.api_key, "***").split())[:500]

    try:
        async with asyncio.timeout(timeout):
            completion: Any = await client.chat.completions.create(**question.request)
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise Unanswered("an answer that is no chat completion, or has no choices", paid=True)
        answer, usage = question.read(completion), completion.usage
    except TimeoutError:
        raise Unanswered(f"no answer within {timeout:g} s", paid=True) from None
    except openai.APIConnectionError as error:
        paid = not isinstance(error.__cause__, (httpx2.ConnectError, httpx2.ConnectTimeout))
        raise Unanswered(f"{'the connection was cut' if paid else 'no connection'}: {shown(repr(error.__cause__))}", paid=paid) from None
    except openai.APIStatusError as error:
        status, words = error.status_code, shown(f"status {error.status_code}: {error.response.text}")
        if status in TRY_AGAIN or status >= 500:  # 504: a gateway that has asked, and not waited for the answer
            raise Unanswered(words, paid=status == 504, wait=retry_after(error.response.headers)) from None
        if any(mark in words for mark in UNREADABLE):
            raise Unanswered(words, paid=False, again=False) from None
        if status in (400, 422) and question.rejected is not None:
            return Answered(question.rejected(words))
        raise _mistake(status, words, str(client.base_url), question.request, key_name) from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of JSON that is cut short, or has another shape
        raise Unanswered(f"an answer that can't be read: {shown(repr(error))}", paid=True) from None
    return Answered(answer, usage.prompt_tokens, usage.completion_tokens) if usage else Answered(answer)


def _mistake(status: int, words: str, where: str, request: Mapping[str, Any], key_name: str | None) -> UserError:
    """What the user should change where a server says no."""
    model = request["model"]
    if status in (401, 403):
        wanted, todo = "a key", "Name the environment variable that holds it: `api_key_env: NAME`"
        if key_name is not None:
            wanted, todo = f"another key than that in ${key_name}", "Set the variable to one that may use this model"
        return UserError(f"ChatAPI: the server at {where} wants {wanted} for model {model!r}. {todo}.\n{words}")
    if status == 404:
        return UserError(
            f"ChatAPI: the server at {where} has no model {model!r}, or no chat completions at that address. Correct model, or "
            f"base_url, which often ends in /v1.\n{words}"
        )
    return UserError(
        f"ChatAPI: the server at {where} does not take what it is asked of model {model!r}: "
        f"{', '.join(sorted(request))}. Its words say which: change model, readout, top_logprobs, temperature, max_tokens or "
        f"extra_body.\n{words}"
    )


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: ``retry-after-ms``, or ``retry-after`` in seconds or as a date; None if it does not say.

    >>> retry_after({"retry-after": "2"}), retry_after({"retry-after-ms": "300"}), retry_after({"retry-after": "soon"})
    (2.0, 0.3, None)
    """
    milliseconds, value = headers.get("retry-after-ms"), headers.get("retry-after", "")
    try:
        wait = float(value) if milliseconds is None else float(milliseconds) / 1000
    except ValueError:
        date = email.utils.parsedate_tz(value)
        wait = None if date is None else email.utils.mktime_tz(date) - time.time()
    return None if wait is None else max(wait, 0.0)
