"""A hub that refuses, lacks or does not answer: one sentence, within seconds.

The hub's address is read when its library is imported, so each case is a process of its own.
"""

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ASK = """
import sys
from sae_engine.errors import UserError
if sys.argv[1] == "model":
    from sae_engine.model.language_model import LanguageModel
    from sae_engine.schema.config import ModelConfig
    ask = lambda: LanguageModel.load(ModelConfig(name="somebody/something", layer=0))
else:
    from sae_engine.schema.config import DataConfig
    from sae_engine.text.sources import documents
    ask = lambda: next(documents(DataConfig(dataset="somebody/something"), "train"))
import json, time
began = time.monotonic()
try:
    ask()
except UserError as error:
    print(json.dumps([str(error), time.monotonic() - began]))
"""


@contextmanager
def hub(status: int, code: str) -> Iterator[str]:
    """A hub on the loopback that answers everything with one error."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def answer(what: str, endpoint: str, cache: str) -> tuple[str, float]:
    environment = os.environ | {"HF_ENDPOINT": endpoint, "HF_HOME": cache, "HF_HUB_OFFLINE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, what],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("what", "status", "code", "words"),
    [
        ("model", 403, "GatedRepo", "is gated: accept its license"),
        ("model", 404, "RepoNotFound", "There is no model 'somebody/something'"),
        ("dataset", 404, "RepoNotFound", "There is no dataset 'somebody/something'"),
    ],
)
def test_a_refusal_is_answered_with_its_remedy(what, status, code, words, tmp_path):
    with hub(status, code) as endpoint:
        message, _ = answer(what, endpoint, str(tmp_path))
    assert words in message


@pytest.mark.parametrize("what", ["model", "dataset"])
def test_a_hub_that_does_not_answer_is_named_within_seconds(what, tmp_path):
    message, seconds = answer(what, "http://127.0.0.1:9", str(tmp_path))
    assert "check the network" in message
    assert seconds < 15
