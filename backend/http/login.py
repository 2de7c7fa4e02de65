"""The access token: checked in every request, and exchanged for a cookie on the login page.

Used by `security`, which decides which requests need it.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
from collections.abc import Iterator
from html import escape
from string import Template
from urllib.parse import parse_qs, quote

from pydantic import SecretStr
from starlette.requests import HTTPConnection, Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from backend.errors import TooManyRequestsError
from backend.http.rates import Rate

COOKIE = "sae_workbench"
"""Beginning of the cookie's name; the rest depends on the token."""
LOGIN_PATH = "/login"
MAX_FORM_BYTES = 10_000
FORM_SECONDS = 15.0
MAX_WRONG_PER_MINUTE = 10
"""Wrong tokens that an address may try before it must wait, on the page and in headers each."""
COOKIE_SECONDS = 30 * 24 * 3600
_TOO_MANY = "Too many wrong tokens; try again in {} s."

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>SAE Workbench</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; }
body { display: grid; place-items: center; min-height: 90vh; }
form { display: grid; gap: .75rem; width: 20rem; }
input, button { font: inherit; padding: .5rem; }
p { margin: 0; color: #c0392b; min-height: 1.2em; }
</style></head><body>
<form method="post" action="$action">
<h1>SAE Workbench</h1>
<label for="token">Access token</label>
<input id="token" name="token" type="password" autocomplete="current-password" autofocus required>
<p role="alert">$message</p>
<button>Enter</button>
</form></body></html>
""")


class TokenLogin:
    """One secret token, and the cookie that stands for it.

    The cookie proves that a browser has sent the token, which cannot be computed from it.
    """

    def __init__(self, token: SecretStr, base_path: str = "") -> None:
        """`base_path` is where a proxy serves the pages; see `Settings`."""
        self._base = base_path
        self._token = token.get_secret_value()
        key = self._token.encode()
        self._cookie = hmac.new(key, b"sae-workbench cookie", hashlib.sha256).hexdigest()
        # A browser sends the cookies of all servers on a host, whatever their port.
        name = hmac.new(key, b"sae-workbench name", hashlib.sha256).hexdigest()
        self.cookie_name = f"{COOKIE}_{name[:8]}"
        # Separate, so that a program with an old token keeps nobody from logging in.
        self._wrong_logins = Rate(MAX_WRONG_PER_MINUTE)
        self._wrong_headers = Rate(MAX_WRONG_PER_MINUTE)

    def accepts(self, request: HTTPConnection) -> bool:
        """Whether a request carries the cookie or the token; raises `TooManyRequestsError` for any
        token, also the right one, from an address that has just sent too many wrong ones.
        """
        cookies = _cookies(request, self.cookie_name.encode())
        if any(_equal(value, self._cookie.encode()) for value in cookies):
            return True
        given = _bearer(request)
        if given is None:
            return False
        client = _address(request)
        if seconds := self._wrong_headers.wait_seconds(client):
            raise TooManyRequestsError(
                _TOO_MANY.format(seconds), kind="too-many-requests", retry_after_seconds=seconds
            )
        if _equal(given, self._token.encode()):
            return True
        self._wrong_headers.count(client)
        return False

    async def respond(self, request: Request) -> Response:
        """The login page; the right token sets the cookie and leads to the page in `next`."""
        target = _own_path(request.query_params.get("next", ""), self._base)
        here = login_url(self._base, target)
        if request.method != "POST":
            return _page(here)
        client = _address(request)
        if seconds := self._wrong_logins.wait_seconds(client):
            page = _page(here, _TOO_MANY.format(seconds), status=429)
            page.headers["Retry-After"] = str(seconds)
            return page
        body = b""
        try:
            async with asyncio.timeout(FORM_SECONDS):
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > MAX_FORM_BYTES:
                        return _page(here, "That is too long.", status=413)
        except TimeoutError:
            return _page(here, "The form did not arrive; send it again.", status=408)
        given = parse_qs(body.decode("utf-8", "replace")).get("token", [""])[0].strip()
        if not _equal(given.encode("utf-8", "replace"), self._token.encode()):
            self._wrong_logins.count(client)
            return _page(here, "That is not the token.", status=401)
        response = RedirectResponse(target, status_code=303)
        response.set_cookie(
            self.cookie_name,
            self._cookie,
            max_age=COOKIE_SECONDS,
            path=self._base or "/",
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response


def login_url(base_path: str, target: str) -> str:
    """Address of the login page that leads to `target` afterwards."""
    return f"{base_path}{LOGIN_PATH}?next={quote(target, safe='')}"


def _page(address: str, message: str = "", *, status: int = 200) -> HTMLResponse:
    page = _PAGE.substitute(action=escape(address), message=escape(message))
    return HTMLResponse(page, status_code=status)


def _address(request: HTTPConnection) -> str:
    return request.client.host if request.client else "unknown"


def _bearer(request: HTTPConnection) -> bytes | None:
    """The token in a request's header; of several only the first, so that a request is one try."""
    for name, value in request.headers.raw:
        scheme, _, given = value.partition(b" ")
        if name == b"authorization" and scheme.lower() == b"bearer":
            return given.strip()
    return None


def _cookies(request: HTTPConnection, name: bytes) -> Iterator[bytes]:
    """The values of a cookie, whatever other programs on this host put into theirs."""
    for header, value in request.headers.raw:
        for pair in value.split(b";") if header == b"cookie" else ():
            key, _, given = pair.partition(b"=")
            if key.strip() == name:
                yield given.strip().strip(b'"')


def _equal(given: bytes, expected: bytes) -> bool:
    return hmac.compare_digest(given, expected)


def _own_path(target: str, base_path: str) -> str:
    """`target` if it is a path on this server, else its first page: no redirect leads to another
    site.
    """
    home = f"{base_path}/"
    safe = target.startswith(home) and not target.startswith("//") and "\\" not in target
    return target if safe and target.isprintable() else home
