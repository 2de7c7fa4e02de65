"""The real API over a real data folder, which tests of pages change and look into."""

from __future__ import annotations

import fcntl
import json
import math
import os
import random
import socket
import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import streamlit as st
import uvicorn
from sqlalchemy import delete
from sqlalchemy.orm import Session
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend import store
from backend.analyses.client import Analyses
from backend.app import api_mount, create_api, running
from backend.http.security import AccessGuard
from backend.http.services import Services
from backend.playground.client import ModelProcess
from backend.processes import start_of
from backend.settings import Settings
from backend.store.database import open_database
from backend.store.models import RunRow
from frontend.api import cache as pages_server
from frontend.api.client import WorkbenchClient
from sae_engine.presets import resolve_config
from sae_engine.schema.features import LabelUpdate
from sae_engine.schema.fields import merge
from sae_engine.schema.records import MetricsRecord, SnapshotRecord
from sae_engine.schema.runs import ENDED, RunPatch, RunStatus
from tests.backend.conftest import wait_for
from tests.backend.fake_engine import fake_job
from tests.frontend.indexes import BATCH_TOKENS, FINAL_STEP, NUM_TOKENS, STEPS
from tests.frontend.samples import NASTY

TOKENS_PER_SECOND = 9_000.0
FAILURE = "The loss became NaN at step 120; lower train.lr."


class Request(NamedTuple):
    """A request that reached the server."""

    method: str
    path: str
    body: bytearray


class Recorder:
    """ASGI middleware that keeps every request; while `down`, it answers 503 itself."""

    def __init__(self, app: ASGIApp, requests: list[Request], is_down: Callable[[], bool]) -> None:
        self._app, self._requests, self._is_down = app, requests, is_down

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._is_down():
            await PlainTextResponse("down", 503)(scope, receive, send)
            return
        request = Request(scope["method"], scope["path"], bytearray())
        self._requests.append(request)

        async def recorded() -> Message:
            message = await receive()
            request.body.extend(message.get("body", b""))
            return message

        await self._app(scope, recorded, send)


class Workbench:
    """A data folder, and the server over it once `serving` has begun."""

    def __init__(self, settings: Settings, services: Services, indexes: Path) -> None:
        self._lock = settings.supervisor_lock.open("a")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self.settings = settings
        self.services = services
        self.url = ""
        self.down = False
        self.requests: list[Request] = []
        self._indexes = indexes
        self._published = settings.data_dir / "analyses"
        self._taken_away = settings.data_dir / "taken away"

    def posted(self, path: str) -> list[dict[str, Any]]:
        """The bodies of all POST requests to a path such as `/api/runs`."""
        sent = [r.body for r in self.requests if (r.method, r.path) == ("POST", path)]
        return [json.loads(body) for body in sent]

    def requests_to(self, end: str) -> list[Request]:
        """The requests to paths that end so."""
        return [request for request in self.requests if request.path.endswith(end)]

    @property
    def runs(self) -> dict[str, RunRow]:
        """All runs by id, archived ones included."""
        with self.services.database.reading() as session:
            found = store.list_runs(session, store.RunFilter(archived=None), limit=500)
            return {row.id: row for row in found.rows}

    def add(self, *run_ids: str, status: RunStatus = "finished", **columns: Any) -> None:
        """Make runs that never came to their first step, named as their ids."""
        with self._writing() as session:
            for run_id in run_ids:
                add_run(session, run_id, run_id, status=status, **columns)

    def change(self, run_id: str, **columns: Any) -> None:
        """Set columns of a run."""
        with self._writing() as session:
            _set(store.get_run(session, run_id), columns)

    def configure(self, run_id: str, section: str, **fields: Any) -> None:
        """Change a section of a run's configuration."""
        self.change(run_id, config=merge(self.runs[run_id].config, {section: fields}))

    def patch(self, run_id: str, **fields: Any) -> None:
        """Change what people may change of a run: its name, tags, notes, place, archive."""
        with self._writing() as session:
            store.patch_run(session, run_id, RunPatch.model_validate(fields))

    def alert(self, run_id: str, *kinds: Any) -> None:
        """Raise alerts of some kinds at step 50."""
        with self._writing() as session:
            for kind in kinds:
                message = f"Alert {NASTY}"
                store.add_notice(
                    session, run_id, level="warning", kind=kind, message=message, step=50
                )

    def label(self, run_id: str, feature: int, text: str) -> None:
        """Label a feature as a person does."""
        with self._writing() as session:
            store.set_label(session, run_id, feature, LabelUpdate(label=text))

    def publish(self, run_id: str, index: str, *steps: int) -> None:
        """Give a run snapshots of the session's index `a` or `b`."""
        with self._writing() as session:
            add_snapshots(session, self.settings, run_id, self._indexes / index, steps)

    def save_checkpoint(self, run_id: str) -> None:
        """Leave a checkpoint from which a run can be resumed."""
        path = self.settings.run_folder(run_id).checkpoint
        path.parent.mkdir(parents=True)
        path.touch()

    def forget(self, *run_ids: str) -> None:
        """Delete runs, working ones too."""
        with self._writing() as session:
            session.execute(delete(RunRow).where(RunRow.id.in_(run_ids)))

    @property
    def client(self) -> WorkbenchClient:
        """The client that the pages use."""
        return pages_server.client()

    def supervise(self) -> None:
        """Let this server supervise the data folder."""
        self._lock.close()
        wait_for(lambda: self.services.supervisor.supervises)

    def compute_analyses(self, script: str) -> None:
        """Take away the published maps and matches; a shell script computes them."""
        self.services.analyses = Analyses(
            self.settings, command=lambda _analysis, _target: ["sh", "-c", script]
        )
        self._published.rename(self._taken_away)

    def finish_analyses(self) -> None:
        """Publish the maps and matches as if they had just been computed."""
        self._taken_away.rename(self._published)

    def close(self) -> None:
        """Let go of the data folder."""
        self._lock.close()

    @contextmanager
    def _writing(self) -> Generator[Session]:
        with self.services.database.writing() as session:
            yield session
        st.cache_data.clear()


def fill(settings: Settings, indexes: Path) -> None:
    """Make a data folder with a finished, a failed and a running run of these ids."""
    settings.data_dir.mkdir()
    with open_database(settings.resolved_database_url) as database, database.writing() as session:
        add_run(session, "finished", "tiny baseline", minutes=90, steps=FINAL_STEP)
        add_run(session, "failed", "lr too high", status="failed", minutes=60, steps=120)
        add_run(session, "live", f"live {NASTY}", status="running", steps=60, slot="cuda:0")
        store.set_process(session, "live", pid=os.getpid(), created=start_of(os.getpid()))
        add_snapshots(session, settings, "finished", indexes / "a", STEPS)
        add_snapshots(session, settings, "failed", indexes / "b", STEPS[:1])
        store.set_label(session, "finished", 3, LabelUpdate(label=f"{NASTY} $x$", starred=True))
    log = settings.run_folder("finished").log
    log.write_text("loading tiny-gemma2\nstep 5 loss 0.9\n")


def add_run(
    session: Session,
    run_id: str,
    name: str,
    *,
    status: RunStatus = "finished",
    minutes: float = 0,
    steps: int = 0,
    **columns: Any,
) -> None:
    """Store a run of the preset `tiny` that began some minutes ago and came to a step."""
    config = resolve_config("tiny", {"name": name})
    row = store.add_run(
        session, config=config, status="queued" if status == "queued" else "running"
    )
    row.id = run_id
    session.flush()
    if status == "queued":
        _set(row, columns)
        return
    store.add_notice(session, run_id, level="info", message="1 row was dropped.", step=1)
    if steps:
        _train(session, run_id, steps, failed=status == "failed")
    if status == "failed":
        store.fail_run(
            session, run_id, status, kind="NonFiniteLossError", message=FAILURE,
            log_tail="step 120 nan",
        )  # fmt: skip
    elif status in ENDED:
        store.end_run(session, run_id, status)
    session.refresh(row)
    start = store.now() - timedelta(minutes=minutes)
    times: dict[str, Any] = dict.fromkeys(("created_at", "queued_at", "started_at"), start)
    if status in ENDED:
        times["ended_at"] = start + timedelta(seconds=row.tokens / TOKENS_PER_SECOND)
    else:
        row.status = status
    _set(row, {"device": "cuda:0", **times, **columns})


def _set(row: RunRow, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        assert hasattr(row, name), name
        setattr(row, name, value)


def _train(session: Session, run_id: str, steps: int, *, failed: bool) -> None:
    """Report a point every five steps."""
    records = [
        MetricsRecord(step=s, tokens=s * BATCH_TOKENS, time=s * 0.2, values=point(s))
        for s in range(5, steps + 1, 5)
    ]
    if failed:
        records[-1].values["loss"] = math.nan
    store.add_metrics(session, run_id, records)
    latest = records[-1].values
    if steps == FINAL_STEP:
        latest |= {"ce_delta": 0.21, "eval_fvu": 0.131, "eval_l0": 31.4}
    store.update_metrics(
        session, run_id, latest, step=steps, total_steps=FINAL_STEP, tokens=steps * BATCH_TOKENS,
        total_tokens=FINAL_STEP * BATCH_TOKENS, tokens_per_second=TOKENS_PER_SECOND,
        eta_seconds=60.0, phase="training",
    )  # fmt: skip


def point(step: int) -> dict[str, float]:
    """Plausible values of one step."""
    noise = random.Random(step).gauss(0, 0.01)
    fvu = 0.12 + 0.8 * math.exp(-step / 60) + noise
    values = {
        "loss": fvu * 1.05,
        "fvu": fvu,
        "l0": 31.5 + 10 * noise,
        "frac_dead": 0.02 * math.exp(-step / 200),
        "lr": 3e-4 * min(1, step / 50),
        "tokens_per_second": TOKENS_PER_SECOND + 4e4 * noise,
    }
    return values | ({"eval_fvu": fvu + 0.01, "eval_l0": 31.4} if step % 100 == 0 else {})


def add_snapshots(
    session: Session, settings: Settings, run_id: str, index: Path, steps: Iterable[int]
) -> None:
    """Link a run to the folder of an index, and note some of its snapshots."""
    folder = settings.run_folder(run_id)
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.features.symlink_to(index / "features")
    for step in steps:
        record = SnapshotRecord(
            step=step,
            tokens=step * BATCH_TOKENS,
            index_tokens=NUM_TOKENS,
            seconds=0.1,
            final=step == FINAL_STEP,
        )
        store.add_snapshot(session, run_id, record)


@contextmanager
def serving(settings: Settings, model: ModelProcess, indexes: Path) -> Generator[Workbench]:
    """Serve a filled data folder on a free port of the loopback.

    At first another server seems to supervise it, so that no run is started or judged.
    """
    api = create_api(settings, command=fake_job)
    services: Services = api.state.services
    services.language_model = model
    workbench = Workbench(settings, services, indexes)

    @asynccontextmanager
    async def lifespan(_: Starlette):
        async with running(api):
            yield

    app = Starlette(
        routes=[api_mount(api, settings)],
        middleware=[
            Middleware(Recorder, workbench.requests, lambda: workbench.down),
            Middleware(AccessGuard, settings=settings),
        ],
        lifespan=lifespan,
    )
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        workbench.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            wait_for(lambda: server.started or not thread.is_alive())
            assert server.started, "the server did not start"
            yield workbench
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            workbench.close()
