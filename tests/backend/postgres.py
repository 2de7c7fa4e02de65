"""A temporary PostgreSQL server for the tests, on a socket in a temporary folder."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import psycopg
from psycopg import sql

from backend.store.database import open_database

USER = "workbench"
MISSING = (
    "PostgreSQL's server is not installed (Debian and Ubuntu: apt-get install postgresql), or its "
    "programs are not on the PATH"
)
SPEED = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "shared_buffers=32MB")


def find_programs() -> Path | None:
    """The folder of `initdb` and `postgres`; Debian keeps the newest outside the PATH."""
    found = shutil.which("initdb")
    debian = Path("/usr/lib/postgresql").glob("*/bin/initdb")
    newest = max(debian, key=lambda path: int(path.parts[-3]), default=None)
    program = Path(found) if found else newest
    return None if program is None else program.resolve().parent


class Postgres:
    """A server that tests can stop and start, and databases on it."""

    def __init__(self, socket: Path, control: Callable[..., None]) -> None:
        """`control` runs `pg_ctl` with some arguments."""
        self._socket = socket
        self._control = control
        self._numbers = count()
        self.start()
        self._execute("CREATE DATABASE template")
        with open_database(self.url("template")):
            pass

    def start(self) -> None:
        options = [f"-c {option}" for option in (*SPEED, f"unix_socket_directories={self._socket}")]
        options += ["-c listen_addresses=''", "-c log_min_messages=fatal"]
        self._control("-l", self._socket / "log", "-o", " ".join(options), "start")

    def stop(self) -> None:
        """Disconnect all clients and stop."""
        self._control("-m", "fast", "stop")

    def _dsn(self, name: str) -> str:
        return f"host={self._socket} user={USER} dbname={name}"

    def url(self, name: str) -> str:
        return f"postgresql+psycopg://{USER}@/{name}?host={self._socket}"

    @contextmanager
    def database(self, *, empty: bool = False) -> Iterator[str]:
        """The URL of a new database, with the current tables unless it is to be `empty`."""
        name = f"test_{next(self._numbers)}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, "template0" if empty else "template")
        try:
            yield self.url(name)
        finally:
            self._execute("DROP DATABASE {} WITH (FORCE)", name)

    def _execute(self, statement: str, *names: str) -> None:
        identifiers = [sql.Identifier(name) for name in names]
        with psycopg.connect(self._dsn("postgres"), autocommit=True) as admin:
            admin.execute(sql.SQL(statement).format(*identifiers))  # pyright: ignore[reportArgumentType]


@contextmanager
def running_server(programs: Path) -> Iterator[Postgres]:
    """A server while the block runs; runs as the user `postgres` if the tests run as root, because
    PostgreSQL refuses to.
    """
    with tempfile.TemporaryDirectory(prefix="pg-") as name:  # short, as a socket's path must be
        folder = Path(name)
        as_user: list[str] = []
        if os.geteuid() == 0:
            owner = pwd.getpwnam("postgres")
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            as_user = ["setpriv", f"--reuid={owner.pw_uid}", f"--regid={owner.pw_gid}"]
            as_user += ["--clear-groups", "--"]
        data = folder / "data"
        command = [programs / "initdb", "-D", data, "-U", USER, "-A", "trust", "-N", "-E", "UTF8"]
        _call([*as_user, *command, "--locale=C.UTF-8"], folder)
        control = [*as_user, programs / "pg_ctl", "-D", data, "-w", "-t", "60"]
        server = Postgres(folder, lambda *arguments: _call([*control, *arguments], folder))
        try:
            yield server
        finally:
            server.stop()


def _call(command: list[str | Path], folder: Path) -> None:
    done = subprocess.run(
        command, cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
