"""A language model behind an OpenAI-compatible endpoint, such as OpenAI, vLLM, Ollama or llama.cpp.

The `openai` client sends the requests and retries them. It is imported when a labeling job starts,
because its import takes a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from sae_engine.errors import UserError
from sae_engine.features.labels.questions import Messages

if TYPE_CHECKING:
    from openai import APIStatusError

MAX_RETRIES = 5
"""Retries of a request after 408, 409, 429, 5xx or no response; the pauses sum to 15 s, or are what
the endpoint's Retry-After says, up to 2 minutes each."""
TIMEOUT_SECONDS = 120.0
"""For one attempt, from its start to the last byte of its answer."""
CONNECT_SECONDS = 10.0
MAX_ANSWER_TOKENS = 2_000
"""Enough for a model that reasons before it answers."""
MAX_ANSWER_CHARACTERS = 20_000
"""Of a longer answer only the end is read, where the label is."""
MAX_COUNT = 10**9
GARBLED_TRIES = 2
"""Attempts per answer when the endpoint reports success without a chat completion."""


class EndpointError(UserError):
    """The endpoint gave no usable answer."""

    def __init__(self, message: str, *, transient: bool) -> None:
        super().__init__(message)
        self.transient = transient
        """Whether a later request may succeed."""


@dataclass(frozen=True)
class Answer:
    """The model's text, and the endpoint's token counts; 0 if it sends none."""

    text: str
    prompt_tokens: int
    completion_tokens: int


class ChatClient:
    """Asks one model; to be closed with `contextlib.aclosing`."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str | None,
        *,
        timeout_seconds: float = TIMEOUT_SECONDS,
        max_retries: int = MAX_RETRIES,
    ) -> None:
        from openai import AsyncOpenAI, Omit

        from backend.labels.bounded import BoundedClient

        self._url = base_url
        self._client = AsyncOpenAI(
            base_url=base_url,
            api_key=api_key or "none",  # the client insists on one
            http_client=BoundedClient(timeout_seconds, CONNECT_SECONDS),
            max_retries=max_retries,
            # Otherwise taken from OPENAI_* variables, which may belong to another endpoint.
            default_headers=cast(
                dict[str, str], {"OpenAI-Organization": Omit(), "OpenAI-Project": Omit()}
            ),
        )
        self._parameters: dict[str, Any] = {
            "model": model,
            "temperature": 0,
            "max_tokens": MAX_ANSWER_TOKENS,
        }

    async def aclose(self) -> None:
        await self._client.close()

    async def ask(self, messages: Messages) -> Answer:
        """One answer; raises `EndpointError`."""
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        from backend.labels.bounded import UnboundedAnswerError

        for _ in range(GARBLED_TRIES):
            try:
                answer = _answer(await self._complete(messages))
            except UnboundedAnswerError as error:
                raise self._error(str(error), transient=True) from None
            except APITimeoutError:
                raise self._error("did not respond in time", transient=True) from None
            except APIConnectionError as error:
                reason = error.__cause__ or error
                raise self._error(f"cannot be reached ({reason})", transient=True) from None
            except APIStatusError as error:
                status = error.status_code
                transient = status in (408, 409, 429) or status >= 500
                problem = f"answered {status}: {_reason(error)}"
                raise self._error(problem, transient=transient) from None
            if answer is not None:
                return answer
        raise self._error("did not answer with a chat completion", transient=True)

    async def _complete(self, messages: Messages) -> Any:
        """The response as the client parsed it, whatever it is; None if it is broken JSON."""
        from openai import BadRequestError

        while True:
            try:
                completions = cast(Any, self._client.chat.completions)
                return await completions.create(messages=messages, **self._parameters)
            except BadRequestError as error:
                if not self._adapts_to(_reason(error)):
                    raise
            except (ValueError, TypeError, AttributeError, RecursionError):
                return None

    def _adapts_to(self, reason: str) -> bool:
        """Rename or drop a parameter that the model rejects; False if `reason` names none."""
        if "max_tokens" in reason and "max_tokens" in self._parameters:
            self._parameters["max_completion_tokens"] = self._parameters.pop("max_tokens")
            return True
        return "temperature" in reason and self._parameters.pop("temperature", None) is not None

    def _error(self, problem: str, *, transient: bool) -> EndpointError:
        remedy = "is it running, and are SAE_WORKBENCH_LABELS_BASE_URL, _MODEL and _API_KEY right?"
        return EndpointError(f"The endpoint {self._url} {problem}; {remedy}", transient=transient)


def _answer(completion: Any) -> Answer | None:
    """The client does not check an endpoint's answers, so nothing is taken for granted here."""
    try:
        text = completion.choices[0].message.content
    except (LookupError, TypeError, AttributeError):
        return None
    if not isinstance(text, str):
        return None
    usage = getattr(completion, "usage", None)
    counts = [_count(getattr(usage, f"{kind}_tokens", 0)) for kind in ("prompt", "completion")]
    return Answer(_storable(text[-MAX_ANSWER_CHARACTERS:]), *counts)


def _count(reported: object) -> int:
    """A token count as an integer; 0 for anything else."""
    if isinstance(reported, int | float) and 0 <= reported <= MAX_COUNT:
        return int(reported)
    return 0


def _storable(text: str) -> str:
    """Text without what databases and requests refuse: half characters and zero bytes."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return whole.replace("\0", "\N{SYMBOL FOR NULL}")


def _reason(error: APIStatusError) -> str:
    """The message in an error's body, shortened."""
    body: Any = error.body
    text: Any = cast(dict[str, Any], body).get("message") if isinstance(body, dict) else body
    words = " ".join(str(text or error.response.text)[:MAX_ANSWER_CHARACTERS].split())[:200]
    return _storable(words) or error.response.reason_phrase
