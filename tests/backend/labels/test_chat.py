"""Transient errors of an endpoint are retried, others are reported in one sentence."""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import aclosing
from typing import Any

import pytest

from backend.labels.bounded import MAX_ANSWER_BYTES
from backend.labels.chat import (
    GARBLED_TRIES,
    MAX_ANSWER_CHARACTERS,
    Answer,
    ChatClient,
    EndpointError,
)
from tests.backend.fake_endpoint import JSON, KEY, MODEL, Endpoint, Reply, completion, endpoint

QUESTION = [{"role": "user", "content": "?"}]
MAX_RETRIES = 3


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as state:
        yield state


def ask(
    url: str,
    *,
    key: str | None = KEY,
    timeout_seconds: float = 20.0,
    max_retries: int = MAX_RETRIES,
    questions: int = 1,
) -> Answer:
    """The last answer."""

    async def run() -> Answer:
        client = ChatClient(
            url, MODEL, key, timeout_seconds=timeout_seconds, max_retries=max_retries
        )
        async with aclosing(client):
            for _ in range(questions - 1):
                await client.ask(QUESTION)
            return await client.ask(QUESTION)

    return asyncio.run(run())


def replies(served: Endpoint, *wanted: Reply | str) -> None:
    """Send these replies in order, and the last one from then on."""
    rest = list(wanted)
    served.reply = lambda _: rest.pop(0) if len(rest) > 1 else rest[0]


def test_a_request_has_model_and_key_and_an_answer_has_token_counts(
    served: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of another endpoint")
    monkeypatch.setenv("OPENAI_ORG_ID", "of another endpoint")
    replies(served, "hello")
    assert ask(served.url + "/") == Answer("hello", 100, 7)
    (body,) = served.asked
    assert (body["model"], body["temperature"], body["messages"]) == (MODEL, 0, QUESTION)
    ask(served.url, key=None)
    assert [headers["Authorization"] for headers in served.headers] == [
        f"Bearer {KEY}",
        "Bearer none",
    ]
    assert not any("of another endpoint" in str(headers) for headers in served.headers)


def test_an_endpoint_without_token_counts_reports_zero(served: Endpoint) -> None:
    body = '{"choices": [{"message": {"content": "hello"}}]}'
    replies(served, Reply(200, body, JSON))
    assert ask(served.url) == Answer("hello", 0, 0)


@pytest.mark.parametrize("status", [408, 429, 500, 503, 529])
def test_a_transient_error_is_retried(served: Endpoint, status: int) -> None:
    replies(served, *[Reply(status)] * MAX_RETRIES, "at last")
    assert ask(served.url).text == "at last"
    assert len(served.asked) == MAX_RETRIES + 1


def test_a_retry_waits_as_long_as_the_endpoint_says(served: Endpoint) -> None:
    replies(served, Reply(429, headers={"Retry-After": "1"}), "hello")
    began = time.monotonic()
    ask(served.url)
    assert time.monotonic() - began >= 1  # the client's own first pause is half a second


GARBLED = [
    "no JSON",
    '{"choices": []}',
    '{"choices": [{"message": {"content": null}}]}',
    '["choices"]',
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize("body", GARBLED)
@pytest.mark.parametrize("kind", ["application/json", "text/html"])
def test_a_success_without_a_chat_completion_is_asked_again_and_then_reported(
    served: Endpoint, body: str | bytes, kind: str
) -> None:
    garbled = Reply(200, body, {"Content-Type": kind})
    replies(served, *[garbled] * (GARBLED_TRIES - 1), "at last")
    assert ask(served.url).text == "at last"
    replies(served, garbled)
    with pytest.raises(EndpointError, match="did not answer with a chat completion") as error:
        ask(served.url)
    assert error.value.transient
    assert len(served.asked) == 2 * GARBLED_TRIES


def test_after_its_retries_an_error_is_reported_with_the_endpoints_reason(
    served: Endpoint,
) -> None:
    replies(served, Reply(500, json.dumps({"error": {"message": "out of\nmemory"}})))
    with pytest.raises(EndpointError, match=r"answered 500: out of memory; is it running") as error:
        ask(served.url)
    assert error.value.transient
    assert len(served.asked) == MAX_RETRIES + 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
@pytest.mark.parametrize("body", ['{"error": "no such model"}', "no such model"])
def test_a_permanent_error_is_reported_at_once(served: Endpoint, status: int, body: str) -> None:
    replies(served, Reply(status, body))
    with pytest.raises(EndpointError, match=f"answered {status}: no such model") as error:
        ask(served.url)
    assert not error.value.transient
    assert len(served.asked) == 1


def test_an_endpoint_that_does_not_respond_in_time_is_named(served: Endpoint) -> None:
    served.gate.clear()
    with pytest.raises(EndpointError, match="did not respond in time"):
        ask(served.url, timeout_seconds=0.05, max_retries=1)
    assert len(served.asked) == 2


def test_an_unreachable_endpoint_is_named() -> None:
    with endpoint() as state:
        url = state.url
    with pytest.raises(EndpointError, match=f"The endpoint {url} cannot be reached"):
        ask(url, max_retries=0)


def test_parameters_that_a_model_rejects_are_omitted_from_then_on(served: Endpoint) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        for name in ("max_tokens", "temperature"):
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return Reply(400, json.dumps({"error": {"message": message}}))
        return completion("hello")

    served.reply = reply
    assert ask(served.url, questions=2).text == "hello"
    assert len(served.asked) == 4
    assert set(served.asked[-1]) == {"model", "messages", "max_completion_tokens"}


def test_the_client_library_is_imported_only_when_it_is_used() -> None:
    code = "import sys, backend.app; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("usage", "counts"),
    [
        ('{"prompt_tokens": 1e999, "completion_tokens": 3}', (0, 3)),
        ('{"prompt_tokens": NaN, "completion_tokens": -5}', (0, 0)),
        ('{"prompt_tokens": 1e30, "completion_tokens": 9223372036854775808}', (0, 0)),
        ('{"prompt_tokens": "many", "completion_tokens": [1]}', (0, 0)),
        ('"a lot"', (0, 0)),
    ],
)
def test_token_counts_that_are_none_count_as_zero(
    served: Endpoint, usage: str, counts: tuple[int, int]
) -> None:
    body = f'{{"choices": [{{"message": {{"content": "hello"}}}}], "usage": {usage}}}'
    replies(served, Reply(200, body, JSON))
    assert ask(served.url) == Answer("hello", *counts)


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("a\\ud800b", "a?b"),
        ("\\udfff", "?"),
        ("a\\u0000b", "a\N{SYMBOL FOR NULL}b"),
        ("\\ud83d\\ude00", "\N{GRINNING FACE}"),
    ],
)
def test_an_answer_can_be_stored_and_sent_again(served: Endpoint, sent: str, read: str) -> None:
    body = f'{{"choices": [{{"message": {{"content": "{sent}"}}}}]}}'
    replies(served, Reply(200, body, JSON))
    answer = ask(served.url)
    assert answer.text == read
    assert answer.text.encode()


def test_of_an_endless_answer_the_end_is_read(served: Endpoint) -> None:
    replies(served, completion("\n" * 10**6 + "LABEL: x"))
    answer = ask(served.url)
    assert len(answer.text) == MAX_ANSWER_CHARACTERS
    assert answer.text.endswith("LABEL: x")


@pytest.mark.parametrize("body", ["[]", "null", "3", '"x"', "[" * 5_000, '{"choices": {}}'])
def test_an_answer_of_another_shape_is_reported(served: Endpoint, body: str) -> None:
    replies(served, Reply(200, body, JSON))
    with pytest.raises(EndpointError, match="did not answer with a chat completion"):
        ask(served.url)


class Endless:
    """A body that never ends: the same part over and over, after a pause."""

    def __init__(self, part: bytes, pause_seconds: float = 0.0) -> None:
        self.num_bytes = 0
        self._part = part
        self._pause_seconds = pause_seconds

    def __iter__(self) -> Iterator[bytes]:
        while True:
            time.sleep(self._pause_seconds)
            yield self._part
            self.num_bytes += len(self._part)


@pytest.mark.parametrize(
    ("status", "headers"), [(200, JSON), (200, {}), (500, {}), (302, {"Location": "/elsewhere"})]
)
def test_an_answer_without_end_is_refused_while_it_is_read(
    served: Endpoint, status: int, headers: dict[str, str]
) -> None:
    body = Endless(b"x" * 2**16)
    replies(served, Reply(status, body, headers))
    with pytest.raises(EndpointError, match=f"more than {MAX_ANSWER_BYTES:,} bytes; is") as error:
        ask(served.url)
    assert error.value.transient
    assert len(served.asked) == 1
    assert body.num_bytes < MAX_ANSWER_BYTES + 16 * 2**20  # what the sockets hold


def test_an_answer_just_within_the_limit_is_read(served: Endpoint) -> None:
    spare = MAX_ANSWER_BYTES - len(str(completion("").body))
    replies(served, completion("x" * spare))
    assert ask(served.url).text == "x" * MAX_ANSWER_CHARACTERS


def test_an_answer_that_unpacks_to_more_is_refused(served: Endpoint) -> None:
    packed = gzip.compress(b" " * 2**26)
    replies(served, Reply(200, packed, JSON | {"Content-Encoding": "gzip"}))
    with pytest.raises(EndpointError, match="compresses its answers, but was asked not to; is"):
        ask(served.url)
    assert served.headers[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("status", [200, 503])
def test_an_answer_that_drips_has_the_timeout_as_a_whole(served: Endpoint, status: int) -> None:
    replies(served, Reply(status, Endless(b" ", pause_seconds=0.02), JSON))
    began = time.monotonic()
    with pytest.raises(EndpointError, match="did not respond in time"):
        ask(served.url, timeout_seconds=0.2, max_retries=1)
    assert time.monotonic() - began < 10
    assert len(served.asked) == 2
