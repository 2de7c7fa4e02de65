"""A small API that serves the shapes of `schema/api.py` with believable data, for developing and testing pages.

`python -m tests.frontend.fake_api PORT` serves it alone.
"""

from __future__ import annotations

import hashlib
import math
import random
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, Header, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from sae_engine.errors import ConfigError
from sae_engine.presets import presets, resolve_config
from sae_engine.schema import api
from sae_engine.schema.config import RunConfig

D_SAE = 512
SEEN = 50_000
NASTY = "<script>alert('x')</script>"
WORDS = (
    "\n import os\n import sys\n def __init__ ( self , * args , ** kwargs ) : \n return self . value "
    f"\n raise ValueError ( {NASTY} ) $x$ *bold* _it_ :smile: [a](b)"
).split(" ")


class World:
    """Runs kept in memory; a running one gets on with every look."""

    def __init__(self, *, seconds: float = 60.0, empty: bool = False) -> None:
        self.seconds = seconds
        self.runs: dict[str, api.Run] = {}
        self.keys: dict[str, str] = {}
        self.labels: dict[int, api.LabelUpdate] = {
            3: api.LabelUpdate(label=NASTY + " $x$", starred=True)
        }
        self.down = False
        if not empty:
            tiny = presets()["tiny"].config
            self.add("finished", tiny, name="tiny baseline", status="finished", age_minutes=90)
            self.add("failed", tiny, name="lr too high", status="failed", age_minutes=60)
            self.add("live", tiny, name=f"live {NASTY}", status="running", age_minutes=0)

    def add(
        self,
        run_id: str,
        config: RunConfig,
        *,
        name: str,
        status: api.RunStatus,
        age_minutes: float,
    ) -> api.Run:
        created = datetime.now(UTC) - timedelta(minutes=age_minutes)
        ended = None if status in ("running", "queued") else created + timedelta(seconds=95)
        error = (
            api.RunError(
                type="NonFiniteLossError",
                message="The loss became NaN at step 120; lower train.lr.",
                log_tail="step 119\nstep 120 loss nan",
            )
            if status == "failed"
            else None
        )
        run = api.Run(
            id=run_id, name=name, status=status, config=config, tags=[], notes="", archived=False, group_id=None,
            device="cpu", created_at=created, started_at=created, ended_at=ended,
            progress=api.Progress(step=0, total_steps=489, tokens=0, total_tokens=500_000, tokens_per_second=None, eta_seconds=None, phase=None),
            metrics={}, error=error, resumable=False,
        )  # fmt: skip
        self.runs[run_id] = run
        return run

    def look(self, run_id: str) -> api.Run:
        run = self.runs[run_id]
        at = {"finished": 489, "failed": 120}.get(run.status)
        if run.status in ("running", "stopping"):
            assert run.started_at is not None
            done = (datetime.now(UTC) - run.started_at).total_seconds() / self.seconds
            at = min(489, int(489 * done))
            if at == 489:
                run = run.model_copy(update={"status": "finished", "ended_at": datetime.now(UTC)})
        step = run.progress.step if at is None else at
        values: dict[str, Any] = (
            {} if step == 0 else {k: v for k, v in point(step).items() if v is not None}
        )
        if run.status == "failed":
            values["loss"] = "NaN"
        if run.status == "finished":
            values |= {"ce_delta": 0.21, "eval_fvu": 0.131}
        progress = run.progress.model_copy(
            update={"step": step, "tokens": step * 1024, "tokens_per_second": 9000.0 if step else None,
                    "eta_seconds": (489 - step) / 489 * self.seconds, "phase": "training"}
        )  # fmt: skip
        self.runs[run_id] = run.model_copy(update={"progress": progress, "metrics": values})
        return self.runs[run_id]


def point(step: int) -> dict[str, float | None]:
    """Plausible values of one step."""
    noise = random.Random(step).gauss(0, 0.01)
    fvu = 0.12 + 0.8 * math.exp(-step / 60) + noise
    held = step % 100 == 0
    return {
        "loss": fvu * 1.05, "fvu": fvu, "l0": 31.5 + 10 * noise, "auxk_loss": 0.0,
        "frac_dead": max(0.0, 0.02 * math.exp(-step / 200)), "lr": 3e-4 * min(1, step / 50),
        "tokens_per_second": 9000 + 4e4 * noise, "grad_norm": 0.4,
        "eval_fvu": fvu + 0.01 if held else None, "eval_l0": 31.4 if held else None,
    }  # fmt: skip


def context(seed: int, peak_value: float) -> api.Context:
    """A context whose peak is `peak_value`."""
    rng = random.Random(seed)
    start = rng.randrange(len(WORDS))
    tokens = [" " + WORDS[(start + i) % len(WORDS)] for i in range(60)]
    peak = 30 if seed % 5 else 2
    values = [0.0] * 60
    for near in range(max(0, peak - 3), peak + 3):
        values[near] = peak_value * rng.random() * 0.6
    values[peak] = peak_value
    return api.Context(
        tokens=tokens,
        activations=values,
        activation=peak_value,
        peak=peak,
        position=peak,
        row=seed,
        copies=3 if seed % 4 == 0 else 1,
    )


def feature_row(index: int, label: str | None) -> api.FeatureRow:
    """One feature of the list; every 50th is dead."""
    dead = index % 50 == 49
    fired = 0 if dead else 12 + index * 7
    top = 0.0 if dead else 1.0 + (index % 37) / 5
    return api.FeatureRow(
        index=index, density=api.Density(fraction=fired / SEEN, fired=fired, seen=SEEN), max_activation=top,
        state="dead" if dead else "alive", label=label,
        example=None if dead else context(index, top),
        top_tokens=[] if dead else [" import", "\n", " self", "<b>"],
    )  # fmt: skip


def create_app(world: World | None = None, token: str | None = None) -> FastAPI:
    """The API over one `World`."""
    state = world or World()
    app = FastAPI()

    def problem(
        status: int, detail: str, errors: list[api.FieldProblem] | None = None
    ) -> JSONResponse:
        body = api.Problem(
            type="about:blank", title="Refused", status=status, detail=detail, errors=errors or []
        )
        return JSONResponse(
            body.model_dump(mode="json"), status, media_type="application/problem+json"
        )

    @app.middleware("http")
    async def gate(request: Request, call_next: Any) -> Response:
        if state.down:
            return PlainTextResponse("down", 503)
        if (
            token
            and request.headers.get("authorization") != f"Bearer {token}"
            and not request.url.path.endswith("health")
        ):
            return problem(401, "The token is missing or wrong.")
        run_id = (
            request.url.path.split("/")[3] if request.url.path.startswith("/api/runs/") else None
        )
        if run_id is not None and run_id not in state.runs:
            return problem(404, f"There is no run '{run_id}'.")
        return await call_next(request)

    @app.get("/api/health")
    def health() -> api.Health:
        return api.Health(status="ok", version="0.1.0")

    @app.get("/api/config/presets")
    def all_presets() -> list[api.Preset]:
        return list(presets().values())

    @app.get("/api/runs")
    def runs(status: str | None = None, q: str = "") -> api.RunPage:
        found = [state.look(i) for i in reversed(state.runs)]
        found = [
            r
            for r in found
            if (status is None or r.status == status) and q.lower() in r.name.lower()
        ]
        return api.RunPage(items=found, next_cursor=None)

    @app.post("/api/runs", status_code=201, response_model=None)
    def create(
        body: api.RunCreate, idempotency_key: str | None = Header(None)
    ) -> api.Run | Response:
        if idempotency_key in state.keys:
            return state.look(state.keys[idempotency_key])
        try:
            config = resolve_config(body.preset, body.config)
        except ConfigError as error:
            return problem(422, str(error), error.problems)
        if config.model.layer > 5:
            text = f"model.layer = {config.model.layer}, but tiny-gemma2 has layers 0 to 5."
            return problem(422, text, [api.FieldProblem(field="model.layer", message=text)])
        run_id = hashlib.sha1(str(len(state.runs)).encode()).hexdigest()[:8]
        if idempotency_key:
            state.keys[idempotency_key] = run_id
        return state.add(
            run_id, config, name=body.name or "tiny 1", status="running", age_minutes=0
        )

    @app.get("/api/runs/{run_id}")
    def run(run_id: str) -> api.Run:
        return state.look(run_id)

    @app.patch("/api/runs/{run_id}")
    def patch(run_id: str, body: api.RunPatch) -> api.Run:
        state.runs[run_id] = state.runs[run_id].model_copy(
            update=body.model_dump(exclude_unset=True)
        )
        return state.look(run_id)

    @app.delete("/api/runs/{run_id}", status_code=204)
    def delete(run_id: str) -> None:
        del state.runs[run_id]

    @app.post("/api/runs/{run_id}/stop", status_code=202)
    def stop(run_id: str, force: bool = False) -> api.Run:
        status = "stopped" if force else "stopping"
        state.runs[run_id] = state.look(run_id).model_copy(update={"status": status})
        return state.runs[run_id]

    @app.get("/api/runs/{run_id}/metrics")
    def metrics(run_id: str, since_step: int = 0, max_points: int = 2000) -> api.MetricsSeries:
        last = state.look(run_id).progress.step
        steps = [s for s in range(5, last + 1, 5) if s > since_step]
        points = [point(s) for s in steps]
        series: dict[str, Any] = {name: [p[name] for p in points] for name in point(1)}
        if state.runs[run_id].status == "failed" and steps:
            series["loss"][-1] = "NaN"
        return api.MetricsSeries(
            step=steps, tokens=[s * 1024 for s in steps], time=[s * 0.2 for s in steps], series=series,
            total_points=len(steps), returned_points=len(steps),
        )  # fmt: skip

    @app.get("/api/runs/{run_id}/notices")
    def notices(run_id: str) -> list[api.Notice]:
        now = datetime.now(UTC)
        return [api.Notice(step=1, level="info", message="k_aux was capped at 96.", created_at=now)]

    @app.get("/api/runs/{run_id}/log", response_class=PlainTextResponse)
    def log(run_id: str, tail: int = 200) -> str:
        return "loading tiny-gemma2\nstep 5 loss 0.9\n"

    @app.get("/api/runs/{run_id}/snapshots")
    def snapshots(run_id: str) -> list[api.Snapshot]:
        run = state.look(run_id)
        made = [s for s in range(100, run.progress.step + 1, 100)]
        final = [489] if run.status == "finished" else []
        return [
            api.Snapshot(
                step=s,
                tokens=s * 1024,
                index_tokens=SEEN,
                created_at=datetime.now(UTC),
                final=s in final,
            )
            for s in made + final
        ]

    def rows() -> list[api.FeatureRow]:
        return [
            feature_row(i, state.labels[i].label if i in state.labels else None)
            for i in range(D_SAE)
        ]

    def newest(run_id: str, snapshot: int | None) -> int:
        return snapshot or max((s.step for s in snapshots(run_id)), default=0)

    @app.get("/api/runs/{run_id}/features")
    def features(
        run_id: str, snapshot: int | None = None, sort: api.FeatureSort = "density", order: api.SortOrder = "desc",
        state: api.FeatureState | None = None, q: str = "", limit: int = 50, cursor: int = 0,
    ) -> api.FeaturePage:  # fmt: skip
        def key(row: api.FeatureRow) -> Any:
            return {
                "density": row.density.fraction,
                "label": row.label or "~",
                "index": row.index,
            }.get(sort, row.max_activation)

        found = [r for r in rows() if (state is None or r.state == state) and q in (r.label or "")]
        found.sort(key=key, reverse=order == "desc")
        more = str(cursor + limit) if cursor + limit < len(found) else None
        return api.FeaturePage(
            items=found[cursor : cursor + limit],
            next_cursor=more,
            total=len(found),
            snapshot=newest(run_id, snapshot),
        )

    @app.get("/api/runs/{run_id}/features/{index}", response_model=None)
    def feature(
        run_id: str, index: int, snapshot: int | None = None
    ) -> api.FeatureDetail | Response:
        if index >= D_SAE:
            return problem(404, f"There is no feature {index}; the last is {D_SAE - 1}.")
        kept = state.labels.get(index, api.LabelUpdate())
        row = feature_row(index, kept.label or None)
        top = row.max_activation
        dead = row.state == "dead"
        word = lambda i: WORDS[i % len(WORDS)]  # noqa: E731
        return api.FeatureDetail(
            index=index, density=row.density, max_activation=top, state=row.state, label=row.label,
            snapshot=newest(run_id, snapshot),
            histogram=api.Histogram(edges=[top * i / 40 for i in range(41)], counts=[0 if dead else int(900 * math.exp(-i / 8)) for i in range(40)]),
            contexts=[] if dead else [context(index * 100 + i, top * (1 - i / 40)) for i in range(20)],
            intervals=[] if dead else [
                api.Interval(low=top * i / 5, high=top * (i + 1) / 5, share=0.5 / (5 - i), contexts=[context(index * 100 + 50 + i * 5 + j, top * (i + 0.5) / 5) for j in range(5)])
                for i in reversed(range(5))
            ],
            top_tokens=[] if dead else [
                api.TokenStatistics(id=i, text=" " + word(i), count=900 // (i + 1), f1=0.9 / (i + 1), lift=40 / (i + 1), recall=0.8 / (i + 1), precision=0.9 / (i + 1), mean_activation=top / 2, max_activation=top)
                for i in range(8)
            ],
            logits=api.Logits(
                positive=[api.TokenLogit(id=i, text=" " + word(i + 3), value=1.4 - i / 10) for i in range(10)],
                negative=[api.TokenLogit(id=i, text=word(i + 7), value=-1.1 + i / 10) for i in range(10)],
            ),
            neighbours=[api.Neighbour(index=(index + i * 7) % D_SAE, cosine=0.6 - i / 20, label="imports" if i == 1 else None) for i in range(1, 9)],
            notes=kept.notes, starred=kept.starred,
        )  # fmt: skip

    @app.put("/api/runs/{run_id}/features/{index}/label")
    def label(run_id: str, index: int, body: api.LabelUpdate) -> api.LabelUpdate:
        state.labels[index] = body
        return body

    @app.get("/api/runs/{run_id}/lookup")
    def lookup(
        run_id: str,
        text: str,
        match: api.TokenMatch = "fold",
        rank: api.LookupRank = "f1",
        limit: int = 20,
        snapshot: int | None = None,
    ) -> api.LookupResult:
        if text.strip() == "zzz":
            return api.LookupResult(
                tokens=[api.MatchedToken(id=9, text="zzz", count=0)],
                features=[],
                phrase=False,
                count=0,
                message="'zzz' does not occur in this snapshot's text.",
                snapshot=100,
            )
        members = [
            api.MatchedToken(id=5, text=text.strip(), count=40),
            api.MatchedToken(id=6, text=" " + text.strip(), count=1234),
        ]
        found = [
            api.FeatureMatch(index=i * 11, f1=0.95 / (i + 1), lift=40 / (i + 1), recall=0.9 / (i + 1), precision=0.97 / (i + 1), mean_activation=1.2, max_activation=3.4, count=1200 // (i + 1), density=0.02, label="imports" if i == 0 else None, example=context(i, 3.4))
            for i in range(min(limit, 20))
        ]  # fmt: skip
        return api.LookupResult(
            tokens=members,
            features=found,
            phrase=False,
            count=1274,
            message=None,
            snapshot=newest(run_id, snapshot),
        )

    return app


if __name__ == "__main__":
    import uvicorn

    uvicorn.run(
        create_app(World(seconds=120)), host="127.0.0.1", port=int(sys.argv[1]), log_level="warning"
    )
