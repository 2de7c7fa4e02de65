"""Authorizes every request: to the REST API, the pages and their WebSockets.

Without it, any web page could read a loopback server through a name that resolves to 127.0.0.1 (DNS
rebinding), or post to it from another site.
"""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette._utils import get_route_path
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.errors import ApiError, ForbiddenError, NotFoundError, UnauthorizedError
from backend.http.login import LOGIN_PATH, TokenLogin, login_url
from backend.http.problems import problem_of
from backend.settings import Settings, is_loopback

OPEN_PATHS = frozenset({"/api/health", "/_stcore/health"})
"""Paths that need no token."""
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class AccessGuard:
    """ASGI middleware around the whole server: checks address, host, origin and token."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed_hosts = frozenset(settings.allowed_hosts)
        self._base = settings.base_path
        self._login = None if settings.token is None else TokenLogin(settings.token, self._base)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app
        if scope["type"] in ("http", "websocket"):
            send = _Protected(send)
            try:
                app = await self._authorized(scope, receive)
            except ApiError as error:
                app = _Refusal(error, self._base)
        await app(scope, receive, send)

    async def _authorized(self, scope: Scope, receive: Receive) -> ASGIApp:
        """The application that answers the request; raises `ApiError`."""
        path = get_route_path(scope)
        self._check_address(scope)
        _refuse_other_sites(path, Headers(scope=scope))
        if path.startswith("/api/") and ("\n" in path or "\0" in path):  # no route matches these
            raise NotFoundError(f"There is nothing at {path!r}; /api/docs lists every endpoint.")
        if self._login is None or path in OPEN_PATHS:
            return self._app
        if path == LOGIN_PATH and scope["type"] == "http":
            return await self._login.respond(Request(scope, receive))
        if not self._login.accepts(HTTPConnection(scope)):
            raise UnauthorizedError(
                "This server needs its token; send it as 'Authorization: Bearer <token>'.",
                kind="token-required",
            )
        return self._app

    def _check_address(self, scope: Scope) -> None:
        """Raise `ForbiddenError` unless the request was sent to one of this server's names, and by
        one of its own pages if it was sent by a page.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        server = scope.get("server")
        loopback = server is None or server[1] is None or is_loopback(server[0])
        if not loopback and self._login is None:
            raise ForbiddenError(
                "This server has no token, so it answers on loopback addresses only; "
                "set SAE_WORKBENCH_TOKEN.",
                kind="token-required",
            )
        if loopback or self._allowed_hosts:
            name = _host_name(host)
            if not is_loopback(name) and self._allowed_hosts.isdisjoint((host, name)):
                raise ForbiddenError(
                    f"'{host}' is not one of this server's host names; add it to "
                    "SAE_WORKBENCH_ALLOWED_HOSTS.",
                    kind="host-not-allowed",
                )
        origin = headers.get("origin")
        if origin is not None and not _is_origin_of(origin, host):
            raise ForbiddenError(
                f"This server does not answer pages of '{origin}'; use its own pages.",
                kind="origin-not-allowed",
            )


def _refuse_other_sites(path: str, headers: Headers) -> None:
    """Raise `ForbiddenError` for a request to the API that a page of another site, or of another
    port of this host, makes without an `Origin`, as browsers do for images and links.
    """
    is_api = path == "/api" or path.startswith("/api/")
    site = headers.get("sec-fetch-site")
    if is_api and "origin" not in headers and site in ("cross-site", "same-site"):
        raise ForbiddenError(
            "This server does not answer pages of other sites; use its own pages.",
            kind="origin-not-allowed",
        )


class _Protected:
    """Sends responses that no other site can show in a frame and no browser takes for another type.

    Otherwise a page could lay itself over the buttons to stop and delete a run.
    """

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.append("Content-Security-Policy", "frame-ancestors 'none'")
            headers["X-Frame-Options"] = "DENY"
            headers["X-Content-Type-Options"] = "nosniff"
        await self._send(message)


class _Refusal:
    """An ASGI application that answers a request with an error."""

    def __init__(self, error: ApiError, base: str) -> None:
        self._error = error
        self._base = base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            reason = self._error.detail[:120]
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
            return
        response: Response = problem_of(self._error)
        path = get_route_path(scope)
        is_page = not path.startswith("/api/") and scope["method"] in ("GET", "HEAD")
        if isinstance(self._error, UnauthorizedError) and is_page:
            query = scope["query_string"].decode("latin-1")
            target = self._base + path + (f"?{query}" if query else "")
            response = RedirectResponse(login_url(self._base, target), status_code=303)
        await response(scope, receive, send)


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _is_origin_of(origin: str, host: str) -> bool:
    """Whether an Origin header names the same host and port as the Host header."""
    try:
        parts = urlsplit(origin)
        port = parts.port
    except ValueError:
        return False
    if parts.scheme not in _DEFAULT_PORTS or not parts.netloc:
        return False
    default = _DEFAULT_PORTS[parts.scheme]
    name = _host_name(host)
    host_port = host[len(name) :].lstrip(":")
    same_name = parts.hostname == name.strip("[]")
    is_number = host_port.isascii() and host_port.isdecimal() and len(host_port) <= 5
    return same_name and (port or default) == (int(host_port) if is_number else default)
