"""A small OpenAI-compatible endpoint on loopback that answers by rule, or as it is told to."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

KEY = "sk-secret"
MODEL = "fake-1"


class Reply(NamedTuple):
    """What it sends instead of an answer by rule."""

    status: int = 200
    body: str | bytes = ""
    headers: dict[str, str] | None = None


class Endpoint:
    """What was asked, and how it shall answer."""

    def __init__(self) -> None:
        self.url = ""
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.reply: Callable[[dict[str, Any]], Reply | str] = answer_by_rule
        """An answer's text, or all of a reply."""
        self.gate = threading.Event()
        """Answers wait for it."""
        self.gate.set()
        self.most_at_once = 0
        self._now = 0
        self._lock = threading.Lock()

    def handle(self, body: dict[str, Any], key: str | None) -> Reply:
        with self._lock:
            self.asked.append(body)
            self.keys.append(key)
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
    return Reply(body=json.dumps({"choices": [{"message": message}], "usage": usage}))


def is_detection(body: dict[str, Any]) -> bool:
    return body["messages"][-1]["content"].startswith("Description: ")


def answer_by_rule(body: dict[str, Any]) -> str:
    """Explain by the first marked token, between bars; detect what stands there."""
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
                reply = state.handle(body, self.headers["Authorization"])
            data = reply.body if isinstance(reply.body, bytes) else reply.body.encode()
            try:
                self.send_response(reply.status)
                for name, value in (reply.headers or {}).items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass  # whoever asked has gone

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
