"""A language model behind an API, asked how likely each of a few answers is."""

import asyncio
import json
import warnings
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, final

import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lit_align.annotators.attempt import Question
from lit_align.annotators.calls import Calls, Patience
from lit_align.annotators.keys import check_no_key, read_key, require_openai
from lit_align.annotators.readout import Readout, decide, option_logps, probe_of, read_answer, undecided
from lit_align.annotators.waiting import outside_of_a_loop
from lit_align.functional.distributed import world_size
from lit_align.metering import current_meter, current_repeat
from lit_align.types import JudgeBackend, Message, UserError

if TYPE_CHECKING:
    from openai import AsyncOpenAI


@final
class ChatAPI(JudgeBackend):
    """A model behind any server that speaks OpenAI's chat completions, as a judge's backend.

    Where the server gives log-probs, an option's is read from the first token of the answer, whatever it writes; where it does not,
    the answer's text has to be the option alone, which then has probability 1. Which of the two is decided once, by one question at
    first use, and kept: the run's meter remembers it as it remembers answers, so that a resumed run reads as it began.

    Calls that fail are repeated after growing pauses, or when the server says. A question that is never answered gets NaN; a server that
    answers nobody ends the run. The key is read from the environment when it is needed, and is kept nowhere else.

    Args:
        model: what the server calls it. The journal and a cache of labels know a judge by this name, and not by ``base_url``.
        base_url: address of the API, such as ``https://api.openai.com/v1``.
        api_key_env: the environment variable that holds the key; None where the server wants none.
        readout: ``logprobs``, ``text``, or ``auto``: the first of them that works.
        concurrency: calls at once, of all ranks together; every rank may make one.
        timeout: seconds for one call.
        max_retries: further calls for a question where one failed.
        max_paid_retries: those of them after a call that the server may charge for: one that timed out, was cut off or brought nonsense.
        max_wait: the longest wait that the server may ask for, in seconds; where it asks for more, the run ends.
        top_logprobs: how many of the likeliest first tokens to ask for. An option that is not among them has probability 0.
        max_tokens: of a text; more for a model that thinks first. None sends no limit.
        temperature: of a text. None sends none.
        extra_body: what else to send, such as ``{"top_k": 1}``. No keys: it is written down with the labels.

    Attributes:
        unanswered: questions so far that got no answer.

    Raises:
        UserError: if an argument is out of range, or seems to hold a key; at ``setup``, if there is no key or no ``openai`` package; when
            asked, if the server wants something changed, or ``logprobs`` were asked for and can't be read.
    """

    waits = True

    def __init__(
        self,
        model: str,
        base_url: str,
        api_key_env: str | None = "OPENAI_API_KEY",
        readout: Literal["auto", "logprobs", "text"] = "auto",
        concurrency: int = 16,
        timeout: float = 60.0,
        max_retries: int = 8,
        max_paid_retries: int = 2,
        max_wait: float = 60.0,
        top_logprobs: int = 20,
        max_tokens: int | None = 16,
        temperature: float | None = 0.0,
        extra_body: dict[str, Any] | None = None,
    ) -> None:
        _check_numbers(
            {"concurrency": concurrency, "top_logprobs": top_logprobs, "max_tokens": 1 if max_tokens is None else max_tokens}, at_least=1
        )
        _check_numbers({"max_retries": max_retries, "max_paid_retries": max_paid_retries, "max_wait": max_wait}, at_least=0)
        if timeout <= 0:
            raise UserError(f"ChatAPI: timeout should be the seconds for one call, more than 0, got {timeout}.")
        check_no_key(base_url, api_key_env)
        self.model, self.base_url, self.api_key_env, self.readout = model, base_url, api_key_env, readout
        self.concurrency, self.top_logprobs, self.max_tokens, self.temperature = concurrency, top_logprobs, max_tokens, temperature
        self.extra_body = extra_body
        self.patience = Patience(timeout, max_retries, max_paid_retries, max_wait)
        settings = {"top_logprobs": top_logprobs, "max_tokens": max_tokens, "temperature": temperature, "extra_body": extra_body}
        self.identity = f"ChatAPI({model}, readout={readout}, {_canonical(settings)})"
        self.unanswered = 0
        self._decided: dict[tuple[str, ...], Readout] = {}

    def setup(self, device: torch.device) -> None:
        """Look whether there are a key and the client."""
        require_openai()
        read_key(self.base_url, self.api_key_env)

    def option_logps(self, prompts: Sequence[str | Sequence[Message]], options: Sequence[str]) -> Tensor:
        """See `JudgeBackend.option_logps`. A prompt that comes twice in one call is asked twice.

        Raises:
            UserError: if a prompt is a text: such an API continues none.
        """
        if any(isinstance(prompt, str) for prompt in prompts):
            raise UserError("ChatAPI answers messages, but a prompt is a text. Give messages, or use LocalLM, which can continue a text.")
        answers = outside_of_a_loop(lambda: asyncio.run(self._ask(prompts, tuple(options))))  # pyright: ignore[reportArgumentType]
        rows = [option_logps(answer, options) for answer in answers]
        return torch.tensor(rows, dtype=torch.float32).reshape(len(prompts), len(options))

    async def _ask(self, prompts: Sequence[Sequence[Message]], options: tuple[str, ...]) -> list[str | None]:
        async with self._client() as client:
            calls = Calls(client, current_meter(), self.patience, self._share_of_concurrency(), self.api_key_env)
            readout = await self._decide(calls, options)
            seen: Counter[str] = Counter()
            questions = [self._question(prompt, readout, seen) for prompt in prompts]
            answers = await asyncio.gather(*map(calls.ask, questions), return_exceptions=True)
        self._count_unanswered(calls.unanswered)
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return answers  # pyright: ignore[reportReturnType]

    async def _decide(self, calls: Calls, options: tuple[str, ...]) -> Readout:
        """How to read answers to questions with these options."""
        if self.readout == "text":
            return "text"
        if options not in self._decided:
            request = self._request(({"role": "user", "content": probe_of(options)},), "logprobs")
            rejected = partial(undecided, "the server takes no request with logprobs") if self.readout == "auto" else None
            keys = self._keys({"probe": options, "request": request})
            answer = await calls.ask(Question(*keys, request, partial(decide, options=options), rejected))
            decision = json.loads(answer or undecided("the server did not answer when it was tried", str(calls.unanswered)))
            if self.readout == "logprobs" and decision["readout"] != "logprobs":
                raise UserError(
                    f"ChatAPI: readout is logprobs, but those of model {self.model!r} can't be read: {decision['because']}. Set "
                    "`readout: text`, or give a server or options for which they can."
                )
            because = f": {decision['because']}" if "because" in decision else ""
            rank_zero_info(f"ChatAPI reads {decision['readout']} of {self.model}{because}.")
            self._decided[options] = decision["readout"]
        return self._decided[options]

    def _question(self, messages: Sequence[Message], readout: Readout, seen: Counter[str]) -> Question:
        request = self._request(messages, readout)
        text = _canonical(request)
        keys = self._keys({"request": request, "readout": readout, "draw": [current_repeat(), seen[text]]})
        seen[text] += 1
        return Question(*keys, request, partial(read_answer, readout=readout))

    def _keys(self, asked: dict[str, Any]) -> tuple[str, str]:
        """What an answer depends on, and the same without the server, as ledgers had it once."""
        return _canonical({"server": self.base_url.rstrip("/")} | asked), _canonical(asked)

    def _request(self, messages: Sequence[Message], readout: Readout) -> dict[str, Any]:
        first_token = {"max_tokens": 1, "logprobs": True, "top_logprobs": self.top_logprobs}
        wanted = first_token if readout == "logprobs" else {"max_tokens": self.max_tokens}
        request = {"temperature": self.temperature, **wanted, "extra_body": self.extra_body}
        sent = {name: value for name, value in request.items() if value is not None}
        return {"model": self.model, "messages": [dict(message) for message in messages], **sent}

    def _client(self) -> "AsyncOpenAI":
        """A client of this event loop, that neither retries nor limits an answer's time: `Calls` does."""
        require_openai()
        import httpx2
        from openai import AsyncOpenAI

        connecting = httpx2.Timeout(None, connect=self.patience.timeout / 2)  # so that it is known that nothing was sent
        return AsyncOpenAI(base_url=self.base_url, api_key=read_key(self.base_url, self.api_key_env), max_retries=0, timeout=connecting)

    def _share_of_concurrency(self) -> int:
        """This rank's part of the calls at once."""
        ranks = world_size()
        rank = dist.get_rank() if ranks > 1 else 0
        return max(1, self.concurrency // ranks + (rank < self.concurrency % ranks))

    def _count_unanswered(self, reasons: Sequence[str]) -> None:
        if reasons and not self.unanswered:
            warnings.warn(
                f"ChatAPI expected an answer to every question, but {len(reasons)} got none. The first: {reasons[0]}. They get no "
                "verdict and the run goes on, as others were answered; later cases are counted in `unanswered` and not shown.",
                stacklevel=2,
            )
        self.unanswered += len(reasons)


def _canonical(value: Any) -> str:
    """The same text for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _check_numbers(numbers: dict[str, float], at_least: int) -> None:
    for name, number in numbers.items():
        if number < at_least:
            raise UserError(f"ChatAPI: {name} should be at least {at_least}, got {number}.")
