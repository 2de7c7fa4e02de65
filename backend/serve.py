"""`sae-workbench up`: the pages and the REST API in one ASGI application on one port."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING, Any

from rich.console import Console

from backend.processes import raise_descriptor_limit
from backend.settings import PREFIX, Settings, is_loopback
from sae_engine.errors import UserError

if TYPE_CHECKING:
    from backend.jobs.supervisor import JobCommand

SHUTDOWN_SECONDS = 1
BACKLOG = 128
"""Connections that wait to be accepted."""
STREAMLIT_OPTIONS = {
    "browser.gatherUsageStats": False,
    "server.headless": True,
    "server.fileWatcherType": "none",
    "logger.level": "warning",
    "client.toolbarMode": "minimal",
}
"""These override the pages' `config.toml`. Environment variables would not work: Streamlit reads
them only when started by its own command."""


def serve(settings: Settings, console: Console, *, command: JobCommand | None = None) -> None:
    """Serve until interrupted; jobs continue afterwards.

    `command` replaces the command line of jobs. Raises `UserError` if the address or the data
    folder cannot be used.
    """
    if not is_loopback(settings.host) and settings.token is None:
        raise UserError(
            f"Other machines can reach {settings.host}; set SAE_WORKBENCH_TOKEN to a secret of "
            "your choice, or listen on 127.0.0.1."
        )
    _check_data(settings)
    _check_cluster(settings)
    listener = listen(settings)
    port: int = listener.getsockname()[1]
    os.environ |= {
        f"{PREFIX}DATA_DIR": str(settings.data_dir),
        f"{PREFIX}BASE_PATH": settings.base_path,
        f"{PREFIX}API_URL": f"http://{_reachable(settings.host)}:{port}",
    }
    url = f"http://{'localhost' if is_loopback(settings.host) else settings.host}:{port}"
    console.print(f"SAE Workbench is at [bold]{url}[/bold]  (Ctrl-C stops it; jobs continue)")
    console.print(f"Data in {settings.data_dir}", style="dim", highlight=False)
    _run(settings, listener, port, console, command)


def _check_data(settings: Settings) -> None:
    """Raise `UserError` unless the data folder is writable and its database usable."""
    from sqlalchemy.exc import DatabaseError

    from backend.store.database import open_database

    try:
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=settings.data_dir):
            pass
    except OSError as error:
        raise UserError(
            f"Cannot write to the data folder '{settings.data_dir}' ({error.strerror}); make it "
            "writable, or choose another with --data-dir."
        ) from None
    try:
        with open_database(settings.resolved_database_url):
            pass
    except DatabaseError as error:
        raise UserError(
            f"Cannot use the database in '{settings.data_dir}' ({error.orig}); restore it from a "
            "copy, or choose another folder with --data-dir."
        ) from None


def _check_cluster(settings: Settings) -> None:
    """Raise `UserError` if the machines of a cluster could not reach the database."""
    if settings.ray_url is not None:
        from backend.jobs.executors import require_shared_database

        require_shared_database(settings)


def _run(
    settings: Settings,
    listener: socket.socket,
    port: int,
    console: Console,
    command: JobCommand | None,
) -> None:
    import uvicorn
    from sqlalchemy.exc import SQLAlchemyError
    from streamlit.starlette import App
    from streamlit.web import bootstrap

    from backend import store
    from backend.app import access, api_mount, create_api, running
    from backend.http.connections import ImpatientProtocol, most_connections
    from backend.jobs.logs import log_plainly
    from backend.jobs.supervisor import job_command

    api = create_api(settings, command=command or job_command)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None]:
        async with running(api):
            yield
            with suppress(SQLAlchemyError, UserError):
                with api.state.services.database.reading() as session:
                    count = len(store.active_runs(session))
                console.print(_farewell(count))

    pages = App(
        _pages_script(),
        routes=[api_mount(api, settings)],
        middleware=access(settings),
        lifespan=lifespan,
    )
    log_plainly(logging.WARNING)
    bootstrap.load_config_options(
        {**STREAMLIT_OPTIONS, "server.address": settings.host, "server.port": port}
    )
    config = uvicorn.Config(
        pages,
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        http=ImpatientProtocol,
        limit_concurrency=most_connections(raise_descriptor_limit()),
        backlog=BACKLOG,
    )
    with suppress(KeyboardInterrupt):  # uvicorn raises it again after shutting down
        uvicorn.Server(config).run(sockets=[listener])


def listen(settings: Settings) -> socket.socket:
    """A socket that listens on the address; raises `UserError` if it is taken or none."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(BACKLOG)  # two programs can bind an address; one can listen
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise UserError(
            f"Cannot listen on {settings.host} port {settings.port} ({error.strerror}); "
            "choose another port with --port."
        ) from None
    return listener


def _pages_script() -> Path:
    """Path of the pages' script; the server does not import them."""
    spec = find_spec("frontend")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).with_name("app.py")


def _reachable(host: str) -> str:
    """The address at which this machine reaches itself when it listens on `host`."""
    if host in ("0.0.0.0", "localhost"):
        return "127.0.0.1"
    if host in ("::", "::1"):
        return "[::1]"
    return host


def _farewell(num_active: int) -> str:
    if not num_active:
        return "Stopped."
    runs = "1 run continues" if num_active == 1 else f"{num_active} runs continue"
    return f"Stopped. {runs} without the server."
