"""HTTP to one server: requests out, typed answers in, problems in words."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from typing import Any, NamedTuple, Self, TypeVar, cast

import httpx
from pydantic import BaseModel, ValidationError

from sae_engine.schema.analysis import AnalysisProgress
from sae_engine.schema.problems import Problem

UNREACHABLE = "about:unreachable"

_Shape = TypeVar("_Shape", bound=BaseModel)


class ApiProblem(Exception):  # noqa: N818 - it carries a `Problem`
    """The API refused, failed or could not be reached; `problem` says which, in words."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail or problem.title)
        self.problem = problem

    @property
    def unreachable(self) -> bool:
        """No answer came at all; trying again may help."""
        return self.problem.type == UNREACHABLE


class ServerSentEvent(NamedTuple):
    """One event of a stream; one that only numbers what came before has no name."""

    name: str
    data: str
    id: int | None


class Connection:
    """One HTTP connection pool to one server; safe to share between threads."""

    def __init__(
        self,
        base_url: str,
        token: str | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._http = httpx.Client(
            base_url=base_url.rstrip("/") + "/api",
            headers=headers,
            timeout=httpx.Timeout(15.0, connect=2.0),
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _read_computed(
        self, shape: type[_Shape], path: str, query: Mapping[str, object]
    ) -> _Shape | AnalysisProgress:
        answer = self._send("GET", path, query)
        if answer.status_code == 202:
            return _parsed(AnalysisProgress, path, answer)
        return _parsed(shape, path, answer)

    def _read(
        self, shape: type[_Shape], path: str, query: Mapping[str, object] | None = None
    ) -> _Shape:
        return _parsed(shape, path, self._send("GET", path, query))

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, object] | None = None,
        *,
        body: dict[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float | None = None,
    ) -> httpx.Response:
        """`wait` is how many seconds the answer may take, where that is longer than usual."""
        timeout = self._http.timeout if wait is None else httpx.Timeout(wait, connect=2.0)
        try:
            answer = self._http.request(
                method, path, params=_params(query), json=body, headers=headers, timeout=timeout
            )
        except httpx.TimeoutException as error:
            raise self._unreachable("did not answer in time") from error
        except httpx.TransportError as error:
            raise self._unreachable("cannot be reached") from error
        if answer.is_error:
            raise ApiProblem(_problem(answer))
        return answer

    def _events(
        self,
        method: str,
        path: str,
        query: Mapping[str, object],
        body: dict[str, Any] | None = None,
        *,
        wait: float | None = None,
    ) -> Generator[ServerSentEvent]:
        """The server-sent events that answer; `wait` is the longest silence between two, in
        seconds, where that is longer than usual.
        """
        headers = {"Accept": "text/event-stream"}
        timeout = self._http.timeout if wait is None else httpx.Timeout(wait, connect=2.0)
        try:
            with self._http.stream(
                method, path, params=_params(query), json=body, headers=headers, timeout=timeout
            ) as answer:
                if answer.is_error:
                    answer.read()
                    raise ApiProblem(_problem(answer))
                fields: dict[str, str] = {}
                for line in answer.iter_lines():
                    name, _, value = line.partition(": ")
                    if name:
                        fields[name] = value
                    elif not line:
                        number = int(fields["id"]) if "id" in fields else None
                        yield ServerSentEvent(
                            fields.get("event", ""), fields.get("data", ""), number
                        )
                        fields = {}
        except httpx.TimeoutException as error:
            raise self._unreachable("did not answer in time") from error
        except httpx.TransportError as error:
            raise self._unreachable("cannot be reached") from error

    def _unreachable(self, what: str) -> ApiProblem:
        detail = f"The server at {self._http.base_url.copy_with(path='/')} {what}."
        return ApiProblem(
            Problem(type=UNREACHABLE, title="No connection", status=503, detail=detail)
        )


def _parsed(shape: type[_Shape], path: str, answer: httpx.Response) -> _Shape:
    try:
        return shape.model_validate_json(answer.content)
    except ValidationError as error:
        detail = (
            f"GET {path} answered something that is no {shape.__name__}; "
            "do server and pages have the same version?"
        )
        raise ApiProblem(
            Problem(type="about:blank", title="Unexpected answer", status=502, detail=detail)
        ) from error


def _params(query: Mapping[str, object] | None) -> dict[str, str | list[str]]:
    return {name: _texts(value) for name, value in (query or {}).items() if value is not None}


def _texts(value: object) -> str | list[str]:
    """A query's value; a list stands in it once for each."""
    return (
        [_text(one) for one in cast(list[object], value)]
        if isinstance(value, list)
        else _text(value)
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _problem(answer: httpx.Response) -> Problem:
    """The body as a `Problem`, or one made from the status where the body is none."""
    try:
        return Problem.model_validate(json.loads(answer.content))
    except (ValueError, ValidationError):
        title = answer.reason_phrase or "Error"
        path = answer.request.url.path
        detail = f"{path} answered {answer.status_code} {title}."
        return Problem(type="about:blank", title=title, status=answer.status_code, detail=detail)
