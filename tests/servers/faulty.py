"""An OpenAI-compatible server that does as it is told, request by request: it answers, or fails in one of the ways that servers do."""

import json
import threading
from collections.abc import Callable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[["Handler"], None]


def completion(text: str | None, logprobs: Mapping[str, float] | None = None, **changes: Any) -> dict[str, Any]:
    """A chat completion; ``logprobs`` are those of the first token."""
    top = [{"token": token, "logprob": logp, "bytes": None} for token, logp in (logprobs or {}).items()]
    content = [{**(top[0] if top else {"token": text, "logprob": 0.0, "bytes": None}), "top_logprobs": top}]
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": None if logprobs is None else {"content": content, "refusal": None},
    }
    usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
    return {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], "usage": usage} | changes


def says(text: str | None, logprobs: Mapping[str, float] | None = None, **changes: Any) -> Reply:
    return sends(json.dumps(completion(text, logprobs, **changes)))


def sends(body: str, status: int = 200, kind: str = "application/json", headers: Mapping[str, str] | None = None) -> Reply:
    """These bytes."""
    return lambda handler: handler.reply(status, body.encode(), {"Content-Type": kind, **(headers or {})})


def fails(status: int, headers: Mapping[str, str] | None = None, message: str = "as told", code: str | None = None) -> Reply:
    """The status, with an error as OpenAI's API words it."""
    return sends(json.dumps({"error": {"message": message, "type": "error", "code": code}}), status, headers=headers)


def cut(after: int | None = None) -> Reply:
    """Closes the connection: before any reply, or after so many bytes of the body."""

    def reply(handler: "Handler") -> None:
        body = json.dumps(completion("1")).encode()
        if after is not None:
            handler.start(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
            handler.wfile.write(body[:after])
            handler.wfile.flush()
        handler.close_connection = True
        handler.connection.close()

    return reply


def slow(handler: "Handler") -> None:
    """Answers when the test is over."""
    handler.server.over.wait(20)


class Handler(BaseHTTPRequestHandler):
    """Takes one reply of the script for every request."""

    protocol_version = "HTTP/1.1"
    server: "FaultyServer"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.next_reply(body, self.headers.get("Authorization"))(self)

    def start(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def reply(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.server.leave()
        self.start(status, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Quietly."""


class FaultyServer(ThreadingHTTPServer):
    """Runs in threads of this process from entering a ``with`` to leaving it.

    The first requests get the replies of ``script``, the others what ``answer`` makes of their body, or ``otherwise``.

    Attributes:
        requests: bodies that came.
        keys: their ``Authorization``.
        most_at_once: requests at the same time.
    """

    daemon_threads = True

    def __init__(
        self, script: Sequence[Reply] = (), otherwise: Reply | None = None, port: int = 0, answer: Callable[[Any], Reply] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.over = threading.Event()
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.most_at_once = self._now = 0
        self._script, self._otherwise, self._answer = list(script), otherwise or says("1"), answer
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_reply(self, body: dict[str, Any], key: str | None) -> Reply:
        with self._lock:
            self.requests.append(body)
            self.keys.append(key)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return self._script.pop(0) if self._script else self._answer(body) if self._answer else self._otherwise

    def leave(self) -> None:
        """A request is about to be answered: its client may then send another one."""
        with self._lock:
            self._now -= 1

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error here."""

    def __enter__(self) -> "FaultyServer":
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *args: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()
