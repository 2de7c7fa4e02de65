"""A small OpenAI-compatible endpoint on loopback whose answers follow a rule or the test."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-secret"
JSON = {"Content-Type": "application/json"}
RETRY_NOW = {"Retry-After-Ms": "1"}
MODEL = "fake-1"


class Reply(NamedTuple):
    """A whole response; without `headers`, an error allows an immediate retry."""

    status: int = 200
    body: str | bytes | Iterable[bytes] = ""
    """Parts are sent one by one, without a Content-Length."""
    headers: dict[str, str] | None = None


class Endpoint:
    """The requests so far, and how to answer the next ones."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Message] = []
        self.reply: Callable[[dict[str, Any]], Reply | str] = answer_by_rule
        """From a request to the answer's text, or to a whole response."""
        self.gate = threading.Event()
        """Answers wait while it is clear."""
        self.gate.set()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def handle(self, body: dict[str, Any], headers: Message) -> Reply:
        with self._lock:
            self.asked.append(body)
            self.headers.append(headers)
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
        self.gate.wait(60)
        reply = self.reply(body)
        with self._lock:
            self._now -= 1
        return reply if isinstance(reply, Reply) else completion(reply)


def completion(text: str) -> Reply:
    usage = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    message = {"role": "assistant", "content": text}
    return Reply(body=json.dumps({"choices": [{"message": message}], "usage": usage}), headers=JSON)


def is_detection(body: dict[str, Any]) -> bool:
    return body["messages"][-1]["content"].startswith("Description: ")


def answer_by_rule(body: dict[str, Any]) -> str:
    """Label with the first marked token, between bars; detect texts that contain it."""
    asked = body["messages"][-1]["content"]
    if not is_detection(body):
        return f"It is this token.\nLABEL: |{re.findall('«(.*?)»', asked)[0]}|"
    described, _, rest = asked.partition("\n")
    wanted = described.removeprefix("Description: ").strip("|")
    texts = re.findall(r"^\d+\. (.*)$", rest, re.MULTILINE)
    return json.dumps([int(wanted in text) for text in texts])


@contextmanager
def endpoint() -> Iterator[Endpoint]:
    """Serve until the block ends."""
    state = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path != "/v1/chat/completions":
                reply = Reply(404, "no such path")
            else:
                reply = state.handle(body, self.headers)
            data = reply.body.encode() if isinstance(reply.body, str) else reply.body
            try:
                self.send_response(reply.status)
                for name, value in (RETRY_NOW if reply.headers is None else reply.headers).items():
                    self.send_header(name, value)
                if isinstance(data, bytes):
                    self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                for part in [data] if isinstance(data, bytes) else data:
                    self.wfile.write(part)
            except (BrokenPipeError, ConnectionResetError):
                pass  # the client has left

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield state
    finally:
        state.gate.set()
        server.shutdown()
        server.server_close()
        thread.join()
