"""An endpoint's errors are waited out or named, and nothing but an answer passes for one."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from backend.labels.chat import MAX_ATTEMPTS, Answer, ChatClient, EndpointError
from tests.backend.fake_endpoint import KEY, MODEL, Endpoint, Reply, completion, endpoint

QUESTION = [{"role": "user", "content": "?"}]


@pytest.fixture
def served() -> Iterator[Endpoint]:
    with endpoint() as state:
        yield state


def ask(
    url: str, *, timeout_seconds: float = 20.0, questions: int = 1
) -> tuple[Answer, list[float]]:
    """The last answer, and the pauses that were made."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> Answer:
        client = ChatClient(url, MODEL, KEY, timeout_seconds=timeout_seconds, sleep=sleep)
        async with client:
            for _ in range(questions - 1):
                await client.ask(QUESTION)
            return await client.ask(QUESTION)

    return asyncio.run(run()), pauses


def replies(served: Endpoint, *wanted: Reply | str) -> None:
    """Reply in this order, the last one for good."""
    rest = list(wanted)
    served.reply = lambda _: rest.pop(0) if len(rest) > 1 else rest[0]


def test_a_question_carries_model_and_key_and_its_answer_what_it_took(served: Endpoint) -> None:
    replies(served, "hello")
    answer, pauses = ask(served.url + "/")
    assert answer == Answer("hello", 100, 7)
    assert pauses == []
    assert served.keys == [f"Bearer {KEY}"]
    (body,) = served.asked
    assert (body["model"], body["temperature"], body["messages"]) == (MODEL, 0, QUESTION)


@pytest.mark.parametrize(
    "trouble",
    [
        Reply(429, "slow down"),
        Reply(500, "oops"),
        Reply(503, ""),
        Reply(200, "no JSON"),
        Reply(200, '{"choices": []}'),
        Reply(200, '{"choices": [{"message": {"content": null}}]}'),
        Reply(200, '["choices"]'),
        Reply(200, b"\xff\xfe\x00"),
    ],
)
def test_what_passes_is_waited_out_with_longer_and_longer_pauses(
    served: Endpoint, trouble: Reply
) -> None:
    replies(served, trouble, trouble, trouble, "at last")
    answer, pauses = ask(served.url)
    assert answer.text == "at last"
    assert len(pauses) == 3
    for attempt, pause in enumerate(pauses):
        assert 0.75 * 2**attempt <= pause <= 1.25 * 2**attempt


def test_the_pause_that_the_endpoint_asks_for_is_made_up_to_a_minute(served: Endpoint) -> None:
    waits = [Reply(429, "", {"Retry-After": text}) for text in ("17", "3600", "Mon, 1 Jan")]
    replies(served, *waits, "hello")
    _, pauses = ask(served.url)
    assert pauses[:2] == [17.0, 60.0]
    assert pauses[2] < 6


def test_after_enough_attempts_the_endpoint_is_said_to_fail(served: Endpoint) -> None:
    replies(served, Reply(500, json.dumps({"error": {"message": "out of\nmemory"}})))
    with pytest.raises(EndpointError, match=r"answered 500: out of memory; is it running") as error:
        ask(served.url)
    assert error.value.passing
    assert len(served.asked) == MAX_ATTEMPTS


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_what_trying_again_cannot_help_is_said_at_once(served: Endpoint, status: int) -> None:
    replies(served, Reply(status, json.dumps({"error": "no model of that name"})))
    with pytest.raises(EndpointError, match=f"answered {status}: no model of that name") as error:
        ask(served.url)
    assert not error.value.passing
    assert len(served.asked) == 1


def test_an_endpoint_that_does_not_answer_in_time_is_tried_again_and_named(
    served: Endpoint,
) -> None:
    served.gate.clear()
    with pytest.raises(EndpointError, match="did not answer in time"):
        ask(served.url, timeout_seconds=0.05)
    assert len(served.asked) == MAX_ATTEMPTS


def test_an_endpoint_that_is_not_there_is_named() -> None:
    with endpoint() as state:
        url = state.url
    with pytest.raises(EndpointError, match=f"The endpoint {url}/chat/completions cannot be reach"):
        ask(url)


def test_parameters_that_a_model_does_not_take_are_left_out_from_then_on(
    served: Endpoint,
) -> None:
    def reply(body: dict[str, Any]) -> Reply:
        for name in ("max_tokens", "temperature"):
            if name in body:
                message = f"Unsupported parameter: '{name}' is not supported with this model."
                return Reply(400, json.dumps({"error": {"message": message}}))
        return completion("hello")

    served.reply = reply
    answer, pauses = ask(served.url, questions=2)
    assert (answer.text, pauses) == ("hello", [])
    assert len(served.asked) == 4
    assert set(served.asked[-1]) == {"model", "messages", "max_completion_tokens"}
