"""A language model behind an OpenAI-compatible endpoint: `POST <base>/chat/completions`.

Only what such servers have in common is used: OpenAI, vLLM, Ollama, llama.cpp and others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self, cast

import httpx

from sae_engine.errors import UserError
from sae_engine.features.labels.questions import Messages

MAX_ATTEMPTS = 5
FIRST_PAUSE_SECONDS = 1.0
MAX_PAUSE_SECONDS = 60.0
TIMEOUT_SECONDS = 120.0
MAX_ANSWER_TOKENS = 2_000
"""Enough for a model that thinks aloud before it answers."""
PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
"""Statuses that trying again may get past."""

Sleep = Callable[[float], Awaitable[None]]


class EndpointError(UserError):
    """The endpoint gave no answer that could be used, in words."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.passing = passing
        """Whether it was tried again and again; else trying again is useless."""


@dataclass(frozen=True)
class Answer:
    """What the model said, and what the endpoint counted; 0 where it counts nothing."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class ChatClient:
    """Asks one model; an async context manager."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._parameters: dict[str, Any] = {
            "model": model,
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout_seconds, connect=10.0),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._http.aclose()

    async def ask(self, messages: Messages) -> Answer:
        """One answer; what passes by itself is waited for. Raises `EndpointError`."""
        problem = ""
        for attempt in range(MAX_ATTEMPTS):
            asked_pause = None
            try:
                response = await self._http.post(
                    self._url, json=self._parameters | {"messages": messages}
                )
            except httpx.TimeoutException:
                problem = "did not answer in time"
            except httpx.TransportError as error:
                problem = f"cannot be reached ({error})"
            else:
                if response.is_success:
                    answer = _answer(response)
                    if answer is not None:
                        return answer
                    problem = "answered something that is no chat completion"
                elif self._adapts_to(response):
                    continue
                else:
                    problem = f"answered {response.status_code}: {_reason(response)}"
                    if response.status_code not in PASSING:
                        raise self._error(problem, passing=False)
                    asked_pause = _retry_after(response)
            if attempt < MAX_ATTEMPTS - 1:
                pause = FIRST_PAUSE_SECONDS * 2**attempt * random.uniform(0.75, 1.25)
                await self._sleep(min(max(pause, asked_pause or 0.0), MAX_PAUSE_SECONDS))
        raise self._error(problem, passing=True)

    def _adapts_to(self, response: httpx.Response) -> bool:
        """Leave out a parameter that this model does not take; False if it is not about one."""
        if response.status_code != 400:
            return False
        reason = _reason(response)
        if "max_tokens" in reason and "max_tokens" in self._parameters:
            self._parameters["max_completion_tokens"] = self._parameters.pop("max_tokens")
            return True
        return "temperature" in reason and self._parameters.pop("temperature", None) is not None

    def _error(self, problem: str, *, passing: bool) -> EndpointError:
        remedy = "is it running, and are SAE_WORKBENCH_LABELS_BASE_URL, _MODEL and _API_KEY right?"
        return EndpointError(f"The endpoint {self._url} {problem}; {remedy}", passing=passing)


def _answer(response: httpx.Response) -> Answer | None:
    try:
        body = response.json()
        text = body["choices"][0]["message"]["content"]
        usage = cast(dict[str, Any], body.get("usage") or {})
        counts = [int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion")]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    return Answer(text, *counts) if isinstance(text, str) else None


def _reason(response: httpx.Response) -> str:
    """What an error body says, shortened."""
    try:
        said: Any = response.json()["error"]
        text: Any = cast(dict[str, Any], said)["message"] if isinstance(said, dict) else said
    except (ValueError, LookupError, TypeError):
        text = response.text
    return " ".join(str(text).split())[:200] or response.reason_phrase


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds that the endpoint asks to wait; a date is not understood."""
    try:
        return float(response.headers.get("retry-after", ""))
    except ValueError:
        return None
