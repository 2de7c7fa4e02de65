"""The real API over a real data folder, which the tests of the pages change and look into."""

from __future__ import annotations

import fcntl
import json
import socket
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st
import uvicorn
from fastapi import FastAPI
from sqlalchemy import delete
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from backend import store
from backend.analyses.client import AnalysisClient
from backend.app import api_mount, running
from backend.http.security import AccessGuard
from backend.http.services import Services
from backend.playground.client import PlaygroundClient
from backend.settings import Settings
from backend.store.models import RunRow
from frontend.api import cache as pages_server
from frontend.api.client import WorkbenchClient
from sae_engine.schema.fields import merge
from sae_engine.schema.runs import AlertKind, RunPatch, RunStatus
from tests.backend.conftest import wait_for
from tests.backend.fake_engine import fake_job
from tests.frontend.samples import NASTY
from tests.frontend.seeding import add_run, add_snapshots


class Request(NamedTuple):
    """A request that reached the server."""

    method: str
    path: str
    body: bytearray


class Workbench:
    """The API of one data folder as an ASGI application that records every request."""

    def __init__(
        self, api: FastAPI, settings: Settings, model: PlaygroundClient, indexes: Path
    ) -> None:
        self.settings = settings
        self.services = api.state.services = Services(settings, fake_job)
        self.services.playground = model
        self.url = ""
        self.is_down = False
        """Whether it answers 503 to everything."""
        self.requests: list[Request] = []
        self._indexes = indexes
        self._published = settings.data_dir / "analyses"
        self._taken_away = settings.data_dir / "taken away"
        # As another server would; so no run is started or judged.
        self._lock = settings.supervisor_lock.open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

        @asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncGenerator[None]:
            async with running(api):
                yield

        self._app = Starlette(
            routes=[api_mount(api, settings)],
            middleware=[Middleware(AccessGuard, settings=settings)],
            lifespan=lifespan,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope.get("method", ""), scope.get("path", ""), bytearray())

        async def recorded() -> Message:
            message = await receive()
            request.body.extend(message.get("body", b""))
            return message

        if scope["type"] == "http":
            self.requests.append(request)
            if self.is_down:
                await PlainTextResponse("down", 503)(scope, receive, send)
                return
        await self._app(scope, recorded, send)

    @property
    def client(self) -> WorkbenchClient:
        """The client that the pages use."""
        return pages_server.client()

    def posted(self, path: str) -> list[dict[str, Any]]:
        """The bodies of all POST requests to a path such as `/api/runs`."""
        sent = [r.body for r in self.requests if (r.method, r.path) == ("POST", path)]
        return [json.loads(body) for body in sent]

    def num_requests(self, ending: str) -> int:
        """The number of requests to paths with an ending such as `/map`."""
        return sum(request.path.endswith(ending) for request in self.requests)

    @property
    def runs(self) -> dict[str, RunRow]:
        """All runs by id, archived ones included."""
        with self.services.database.reading() as session:
            found = store.list_runs(session, store.RunFilter(archived=None), limit=500)
            return {row.id: row for row in found.rows}

    @contextmanager
    def writing(self) -> Generator[Session]:
        """A database session that commits; afterwards the pages ask the server again."""
        with self.services.database.writing() as session:
            yield session
        st.cache_data.clear()

    def add(self, *run_ids: str, status: RunStatus = "finished") -> None:
        """Add runs without metrics, named as their ids."""
        with self.writing() as session:
            for run_id in run_ids:
                add_run(session, run_id, run_id, status=status)

    def change(self, run_id: str, **columns: Any) -> None:
        """Set columns of a run."""
        with self.writing() as session:
            row = store.get_run(session, run_id)
            for name, value in columns.items():
                setattr(row, name, value)

    def configure(self, run_id: str, section: str, **fields: Any) -> None:
        """Change a section of a run's configuration."""
        self.change(run_id, config=merge(self.runs[run_id].config, {section: fields}))

    def patch(self, run_id: str, **fields: Any) -> None:
        """Change a run's name, tags, notes, archived flag or place in the queue."""
        with self.writing() as session:
            store.patch_run(session, run_id, RunPatch.model_validate(fields))

    def alert(self, run_id: str, *kinds: AlertKind) -> None:
        """Raise alerts at step 50."""
        with self.writing() as session:
            for kind in kinds:
                words = f"Alert {NASTY}"
                store.add_notice(
                    session, run_id, level="warning", kind=kind, message=words, step=50
                )

    def add_features(self, run_id: str, index: str, *steps: int) -> None:
        """Give a run snapshots of index `a` or `b`."""
        with self.writing() as session:
            add_snapshots(session, self.settings, run_id, self._indexes / index, steps)

    def save_checkpoint(self, run_id: str) -> None:
        """Leave a checkpoint from which a run can be resumed."""
        path = self.settings.run_folder(run_id).checkpoint
        path.parent.mkdir(parents=True)
        path.touch()

    def forget(self, *run_ids: str) -> None:
        """Delete runs, active ones too."""
        with self.writing() as session:
            session.execute(delete(RunRow).where(RunRow.id.in_(run_ids)))

    def compute_analyses(self, script: str) -> None:
        """Take the published maps and matches away; a shell script computes new ones."""
        self.services.analyses = AnalysisClient(
            self.settings, command=lambda _analysis, _target: ["sh", "-c", script]
        )
        self._published.rename(self._taken_away)

    def finish_analyses(self) -> None:
        """Publish the maps and matches as if they had just been computed."""
        self._taken_away.rename(self._published)

    def supervise(self) -> None:
        """Let this server supervise the data folder."""
        self._lock.close()
        wait_for(lambda: self.services.supervisor.supervises)

    @contextmanager
    def serving(self) -> Generator[None]:
        """Serve on a free port of the loopback until the block ends."""
        with self._lock, socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
            config = uvicorn.Config(self, log_config=None, access_log=False, ws="none")
            server = uvicorn.Server(config)
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
            thread.start()
            try:
                wait_for(lambda: server.started or not thread.is_alive())
                assert server.started, "the server did not start"
                yield
            finally:
                server.should_exit = True
                thread.join(timeout=20)
