"""Who may come in: the wall around everything the server answers, REST, pages and WebSockets.

Without it any web page could read a loopback server through a name that resolves to 127.0.0.1 (DNS
rebinding) or post to it from another site.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from html import escape
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

from pydantic import SecretStr
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from backend.errors import ApiError, ForbiddenError, NotFoundError, UnauthorizedError
from backend.http.problems import problem_of
from backend.settings import Settings, is_loopback
from sae_engine.errors import ConfigError
from sae_engine.schema.config import RunConfig
from sae_engine.text.local_files import dataset_files, is_local_dataset

COOKIE = "sae_workbench"
LOGIN = "/login"
OPEN_PATHS = frozenset({"/api/health", "/_stcore/health", LOGIN})
"""What answers without a token."""
MAX_FORM_BYTES = 10_000
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class AccessGuard:
    """ASGI middleware that lets in only who may; wraps the whole server once."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._allowed_hosts = frozenset(settings.allowed_hosts)
        self._token = settings.token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        try:
            self._check_address(scope)
            if path.startswith("/api/") and ("\n" in path or "\0" in path):  # no route matches
                raise NotFoundError(
                    f"There is nothing at {path!r}; see /api/docs for what there is."
                )
            if self._token is None or (path in OPEN_PATHS and path != LOGIN):
                await self._app(scope, receive, send)
                return
            if path == LOGIN and scope["type"] == "http":
                response = await self._login(Request(scope, receive), self._token)
                await response(scope, receive, send)
                return
            self._check_token(Headers(scope=scope), self._token)
        except ApiError as error:
            await self._refuse(error, scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check_address(self, scope: Scope) -> None:
        """Raise `ForbiddenError` unless the request was sent to us by a name of ours and from a
        page of ours.
        """
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        server = scope.get("server")
        loopback = server is None or server[1] is None or is_loopback(server[0])
        if not loopback and self._token is None:
            raise ForbiddenError(
                "This server has no token, so it answers on loopback addresses only; "
                "set SAE_WORKBENCH_TOKEN.",
                kind="token-required",
            )
        if loopback or self._allowed_hosts:
            name = _host_name(host)
            if not (
                is_loopback(name) or host in self._allowed_hosts or name in self._allowed_hosts
            ):
                raise ForbiddenError(
                    f"The host '{host}' is not one of this server's names; "
                    "add it to SAE_WORKBENCH_ALLOWED_HOSTS.",
                    kind="host-not-allowed",
                )
        origin = headers.get("origin")
        if origin is not None and not _same_place(origin, host):
            raise ForbiddenError(
                f"Requests from pages of '{origin}' are not answered; use this server's own pages.",
                kind="origin-not-allowed",
            )

    def _check_token(self, headers: Headers, token: SecretStr) -> None:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and _equal(given.strip(), token.get_secret_value()):
            return
        if _equal(_cookie(headers), _cookie_value(token)):
            return
        raise UnauthorizedError(
            "This server wants its token; send it as 'Authorization: Bearer <token>'.",
            kind="token-required",
        )

    async def _refuse(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": error.detail[:120]})
            return
        response: Response = problem_of(error)
        is_page = not scope["path"].startswith("/api/") and scope["method"] in ("GET", "HEAD")
        if isinstance(error, UnauthorizedError) and is_page:
            query = scope["query_string"].decode("latin-1")
            wanted = scope["path"] + (f"?{query}" if query else "")
            response = RedirectResponse(f"{LOGIN}?next={quote(wanted, safe='')}", status_code=303)
        await response(scope, receive, send)

    async def _login(self, request: Request, token: SecretStr) -> Response:
        """The token box; a right token becomes a cookie that scripts cannot read and other sites
        cannot send.
        """
        wanted = _own_path(request.query_params.get("next", "/"))
        if request.method != "POST":
            return HTMLResponse(_login_page(wanted, ""))
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_FORM_BYTES:
                return HTMLResponse(_login_page(wanted, "That is too long."), status_code=413)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not _equal(given, token.get_secret_value()):
            return HTMLResponse(_login_page(wanted, "That is not the token."), status_code=401)
        response = RedirectResponse(wanted, status_code=303)
        response.set_cookie(
            COOKIE,
            _cookie_value(token),
            max_age=30 * 24 * 3600,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def check_paths(config: RunConfig, roots: Iterable[Path]) -> None:
    """Raise `ConfigError` if the configuration names local files that lie, links followed, outside
    `roots`.
    """
    allowed = [root.resolve() for root in roots]
    model = Path(config.model.name).expanduser()
    if config.model.name.startswith(("/", "./", "../", "~")) or model.exists():
        _check_inside("model.name", model, allowed)
        for file in model.iterdir() if model.is_dir() else ():
            _check_inside("model.name", file, allowed)
    if is_local_dataset(config.data):
        _check_inside("data.dataset", Path(config.data.dataset).expanduser(), allowed)
        for file in dataset_files(config.data):
            _check_inside("data.dataset", file, allowed)
    elif Path(config.data.dataset).exists():
        _check_inside("data.dataset", Path(config.data.dataset), allowed)
    for field, given in (
        ("data.activations", config.data.activations),
        ("sae.pretrained", config.sae.pretrained),
    ):
        if given is not None:
            path = Path(given).expanduser()
            _check_inside(field, path, allowed)
            for file in path.rglob("*") if path.is_dir() else ():
                _check_inside(field, file, allowed)


def _check_inside(field: str, path: Path, allowed: list[Path]) -> None:
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in allowed):
        raise ConfigError.of(
            field,
            f"'{path}' lies outside the folders that runs may read; put it into the data folder "
            "or add its folder to SAE_WORKBENCH_READ_DIRS.",
        )


def _host_name(host: str) -> str:
    """The name in a Host header, without its port."""
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.rpartition(":")[0] if ":" in host else host


def _same_place(origin: str, host: str) -> bool:
    """Whether an Origin header names the place that the Host header names."""
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
    return same_name and (port or default) == (int(host_port) if host_port.isdecimal() else default)


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(), expected.encode())


def _cookie(headers: Headers) -> str:
    try:
        morsel = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        return ""
    return morsel.value if morsel else ""


def _cookie_value(token: SecretStr) -> str:
    """Proof that its holder has shown the token, which cannot be had back from it."""
    key = token.get_secret_value().encode()
    return hmac.new(key, b"sae-workbench cookie", hashlib.sha256).hexdigest()


def _own_path(target: str) -> str:
    """A path on this server, so that the token box sends nobody elsewhere."""
    safe = target.startswith("/") and not target.startswith("//") and "\\" not in target
    return target if safe and target.isprintable() else "/"


def _login_page(wanted: str, message: str) -> str:
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SAE Workbench</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root {{ color-scheme: light dark; font-family: system-ui, sans-serif; }}
body {{ display: grid; place-items: center; min-height: 90vh; }}
form {{ display: grid; gap: .75rem; width: 20rem; }}
input, button {{ font: inherit; padding: .5rem; }}
p {{ margin: 0; color: #c0392b; min-height: 1.2em; }}
</style></head><body>
<form method="post" action="{LOGIN}?next={escape(quote(wanted, safe=""))}">
<h1>SAE Workbench</h1>
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<p role="alert">{escape(message)}</p>
<button>Enter</button>
</form></body></html>
"""
