"""Serves everything below a path, such as `/sae`, for a proxy that shares its host with others."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class BasePath:
    """ASGI middleware that takes the base path off, whether or not the proxy has done so already.

    The API keeps it as `root_path`, because its reference names addresses.
    """

    def __init__(self, app: ASGIApp, base: str) -> None:
        """`base` begins with a slash and ends without one; empty means none."""
        self._app = app
        self._base = base

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._base and scope["type"] in ("http", "websocket"):
            path = self._relative(scope["path"])
            is_api = path.startswith("/api/")
            root = self._base if is_api else ""
            scope = {**scope, "path": root + path, "root_path": root}
        await self._app(scope, receive, send)

    def _relative(self, path: str) -> str:
        if path == self._base:
            return "/"
        return path.removeprefix(self._base) if path.startswith(f"{self._base}/") else path
