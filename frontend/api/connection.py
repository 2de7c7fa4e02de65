"""HTTP to one server: sends requests, parses answers, raises problems in words.

Fed by the shapes of `sae_engine.schema`; read by the calls of this wing.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import cache
from ssl import SSLContext
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
from httpx_sse import ServerSentEvent, connect_sse
from pydantic import BaseModel, TypeAdapter, ValidationError

from sae_engine.schema.analysis import AnalysisProgress
from sae_engine.schema.problems import Problem

UNREACHABLE = "about:unreachable"
SECONDS = 15.0
"""How long an answer may take, unless a call says otherwise."""
CONNECT_SECONDS = 2.0

_Answer = TypeVar("_Answer")
_Body = BaseModel | dict[str, Any] | None


class ApiProblem(Exception):  # noqa: N818 - it carries a `Problem`
    """The API refused, failed or could not be reached; `problem` explains it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem

    @property
    def unreachable(self) -> bool:
        """Whether the server did not answer at all, so that trying again may help."""
        return self.problem.type == UNREACHABLE


@cache
def _tls_context() -> SSLContext:
    """Shared by all clients, because loading the certificates takes longer than a request."""
    return httpx.create_ssl_context(trust_env=False)


class Connection:
    """A pool of connections to one server; safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._http = httpx.Client(
            base_url=base_url.rstrip("/") + "/api",
            headers=[(b"Authorization", f"Bearer {token}".encode())] if token else [],
            transport=transport,
            trust_env=False,
            verify=_tls_context(),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _call(
        self,
        shape: type[_Answer],
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: _Body = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> _Answer:
        """The answer as `shape`, which may be a list of shapes."""
        answer = self._send(method, path, query, body=body, headers=headers, seconds=seconds)
        return _parsed(shape, answer)

    def _call_computed(
        self, shape: type[_Answer], path: str, query: Mapping[str, Any]
    ) -> _Answer | AnalysisProgress:
        """The answer to a GET, or the progress of its computation."""
        answer = self._send("GET", path, query)
        return _parsed(AnalysisProgress if answer.status_code == 202 else shape, answer)

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        body: _Body = None,
        headers: Mapping[str, str] | None = None,
        seconds: float = SECONDS,
    ) -> httpx.Response:
        """The answer, read whole; of a body model only the fields that were set are sent."""
        if isinstance(body, BaseModel):
            body = body.model_dump(mode="json", exclude_unset=True)
        with self._reaching():
            answer = self._http.request(
                method,
                path,
                params=_given(query),
                json=body,
                headers=headers,
                timeout=_timeout(seconds),
            )
        if answer.is_error:
            raise ApiProblem(_problem(answer))
        return answer

    def _events(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        *,
        body: dict[str, Any] | None = None,
        seconds: float = SECONDS,
    ) -> Generator[ServerSentEvent]:
        """The server-sent events of an answer; `seconds` is the longest silence between two."""
        options: dict[str, Any] = {"params": _given(query), "json": body}
        with (
            self._reaching(),
            connect_sse(self._http, method, path, timeout=_timeout(seconds), **options) as source,
        ):
            if source.response.is_error:
                source.response.read()
                raise ApiProblem(_problem(source.response))
            yield from source.iter_sse()

    @contextmanager
    def _reaching(self) -> Generator[None]:
        """Raise `ApiProblem` when the server does not answer."""
        try:
            yield
        except httpx.TimeoutException as error:
            raise self._unreachable("did not answer in time") from error
        except httpx.TransportError as error:
            raise self._unreachable("cannot be reached") from error

    def _unreachable(self, what: str) -> ApiProblem:
        detail = f"The server at {self._http.base_url.copy_with(path='/')} {what}."
        return ApiProblem(
            Problem(type=UNREACHABLE, title="No connection", status=503, detail=detail)
        )


def run_path(run_id: str, *parts: object) -> str:
    """A path below a run, whatever its id contains."""
    return "/".join(["/runs", quote(run_id, safe=""), *map(str, parts)])


def _timeout(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(seconds, connect=CONNECT_SECONDS)


def _given(query: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (query or {}).items() if value is not None}


@cache
def _adapter(shape: Any) -> TypeAdapter[Any]:
    return TypeAdapter(shape)


def _parsed(shape: Any, answer: httpx.Response) -> Any:
    try:
        return _adapter(shape).validate_json(answer.content)
    except ValidationError as error:
        request = answer.request
        detail = (
            f"The answer to {request.method} {request.url.path} has an unexpected shape; make "
            "sure that the server and the pages have the same version."
        )
        raise ApiProblem(
            Problem(type="about:blank", title="Unexpected answer", status=502, detail=detail)
        ) from error


def _problem(answer: httpx.Response) -> Problem:
    """The body as a `Problem`, or one made from the status if the body has another shape."""
    try:
        return Problem.model_validate_json(answer.content)
    except ValidationError:
        title = answer.reason_phrase or "Error"
        detail = f"{answer.request.url.path} answered {answer.status_code} {title}."
        return Problem(type="about:blank", title=title, status=answer.status_code, detail=detail)
