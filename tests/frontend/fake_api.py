"""A small API that serves the shapes of `schema/api.py`, for developing and testing pages.

`python -m tests.frontend.fake_api PORT` serves it alone.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from sae_engine.errors import ConfigError
from sae_engine.presets import presets, resolve_config
from sae_engine.schema import features as api
from sae_engine.schema import machine, runs
from sae_engine.schema.features import FeatureHistory, FeatureMoment
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.lookup import FeatureMatch, LookupResult, MatchedToken, TokenMatch
from sae_engine.schema.problems import FieldProblem, Problem
from tests.frontend.fake_comparison import add_comparison
from tests.frontend.fake_labels import add_labels
from tests.frontend.fake_machine import add_machine
from tests.frontend.fake_probe import add_probe
from tests.frontend.fake_world import D_SAE, WORDS, World, context


def create_app(world: World, token: str | None = None) -> FastAPI:
    """The API over one `World`."""
    app = FastAPI()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Response:
        parts = request.url.path.split("/")
        bearer = request.headers.get("authorization")
        if world.down:
            return PlainTextResponse("down", 503)
        if token and bearer != f"Bearer {token}" and parts[-1] != "health":
            return _problem(401, "The token is missing or wrong.")
        if parts[2] == "runs" and len(parts) > 3 and parts[3] not in world.runs:
            return _problem(404, f"There is no run '{parts[3]}'.")
        return await call_next(request)

    @app.get("/api/health")
    def health() -> machine.Health:
        return machine.Health(status="ok", version="0.1.0")

    @app.get("/api/config/presets")
    def all_presets() -> list[machine.Preset]:
        return list(presets().values())

    _add_runs(app, world)
    _add_features(app, world)
    add_probe(app, world)
    add_labels(app, world)
    add_comparison(app, world)
    add_machine(app, world)
    return app


def _add_runs(app: FastAPI, world: World) -> None:
    @app.get("/api/runs")
    def list_runs(
        status: Annotated[list[str] | None, Query()] = None,
        q: str = "",
        tag: Annotated[list[str] | None, Query()] = None,
        group_id: str | None = None,
        archived: bool = False,
        sort: runs.RunSort = "created",
        order: api.SortOrder | None = None,
        limit: int = 50,
        cursor: int = 0,
    ) -> runs.RunPage:
        found = [world.look(run_id) for run_id in reversed(world.runs)]
        kept = [
            run
            for run in found
            if group_id in (None, run.group_id)
            and run.archived == archived
            and run.status in (status or [run.status])
            and q.lower() in run.name.lower()
            and set(tag or ()) <= set(run.tags)
        ]
        if sort == "name":
            kept.sort(key=lambda run: run.name.lower(), reverse=order == "desc")
        elif sort == "fvu":
            kept.sort(key=lambda run: run.metrics.get("fvu", 9), reverse=order == "desc")
        end = cursor + limit
        next_cursor = str(end) if end < len(kept) else None
        return runs.RunPage(items=kept[cursor:end], next_cursor=next_cursor, total=len(kept))

    @app.get("/api/tags")
    def list_tags() -> list[runs.TagCount]:
        numbers = Counter(tag for run in world.runs.values() for tag in run.tags)
        return [runs.TagCount(tag=tag, num_runs=n) for tag, n in numbers.most_common()]

    @app.post("/api/runs", status_code=201, response_model=None)
    def create(body: runs.RunCreate, idempotency_key: str = Header("")) -> runs.Run | Response:
        if idempotency_key in world.keys:
            return world.look(world.keys[idempotency_key])
        try:
            config = resolve_config(body.preset, body.config)
        except ConfigError as error:
            return _problem(422, str(error), error.problems)
        if config.model.layer > 5:
            text = f"There is no layer {config.model.layer}; tiny-gemma2 has layers 0 to 5."
            return _problem(422, text, [FieldProblem(field="model.layer", message=text)])
        world.created.append(body)
        run_id = f"new{len(world.created)}"
        world.keys[idempotency_key] = run_id
        return world.add(run_id, config, name=body.name or "tiny 1", status="running")

    @app.get("/api/runs/{run_id}")
    def run(run_id: str) -> runs.Run:
        return world.look(run_id)

    @app.patch("/api/runs/{run_id}")
    def patch(run_id: str, body: runs.RunPatch) -> runs.Run:
        update = body.model_dump(exclude_unset=True)
        place = update.pop("queue_position", None)
        world.runs[run_id] = world.runs[run_id].model_copy(update=update)
        if place is not None:
            world.move(run_id, place)
        return world.look(run_id)

    @app.delete("/api/runs/{run_id}", status_code=204)
    def delete(run_id: str) -> None:
        del world.runs[run_id]

    @app.post("/api/runs/{run_id}/stop", status_code=202)
    def stop(run_id: str, force: bool = False) -> runs.Run:
        update = {"status": "stopped" if force else "stopping"}
        world.runs[run_id] = world.look(run_id).model_copy(update=update)
        return world.runs[run_id]

    @app.post("/api/runs/{run_id}/resume", status_code=202)
    def resume(run_id: str) -> runs.Run:
        update = {"status": "queued", "resumable": False, "error": None}
        world.runs[run_id] = world.look(run_id).model_copy(update=update)
        return world.runs[run_id]

    @app.post("/api/runs/{run_id}/retry", status_code=202)
    def retry(run_id: str) -> runs.Run:
        return resume(run_id)

    @app.get("/api/runs/{run_id}/metrics")
    def metrics(run_id: str, since_step: int = -1) -> runs.MetricsSeries:
        return world.metrics(run_id, since_step)

    @app.get("/api/runs/{run_id}/notices")
    def notices(run_id: str) -> list[runs.Notice]:
        return world.notices(run_id)

    @app.get("/api/runs/{run_id}/log", response_class=PlainTextResponse)
    def log(run_id: str) -> str:
        return f"loading tiny-gemma2 for {run_id}\nstep 5 loss 0.9\n"

    @app.get("/api/runs/{run_id}/snapshots")
    def snapshots(run_id: str) -> list[runs.Snapshot]:
        return world.snapshots(run_id)


def _add_features(app: FastAPI, world: World) -> None:
    def newest(run_id: str, snapshot: int | None) -> int:
        return snapshot or max((s.step for s in world.snapshots(run_id)), default=0)

    @app.get("/api/runs/{run_id}/features")
    def features(
        run_id: str,
        snapshot: int | None = None,
        sort: api.FeatureSort = "density",
        order: api.SortOrder = "desc",
        min_density: float = 0,
        max_density: float = 1,
        state: api.FeatureState | None = None,
        q: str = "",
        limit: int = 50,
        cursor: int = 0,
    ) -> api.FeaturePage:
        def key(row: api.FeatureRow) -> Any:
            sorts: dict[str, Any] = {"density": row.density.fraction, "label": row.label or "~"}
            return sorts.get(sort) or (row.index if sort == "index" else row.max_activation)

        found = [world.row(i) for i in range(D_SAE)]
        found = [r for r in found if state in (None, r.state)]
        if q.startswith("#"):
            found = [r for r in found if q == f"#{r.index}"]
        else:
            found = [r for r in found if q in (r.label or "")]
        found = [r for r in found if min_density <= r.density.fraction <= max_density]
        found.sort(key=key, reverse=order == "desc")
        stop = cursor + limit
        return api.FeaturePage(
            items=found[cursor:stop],
            next_cursor=str(stop) if stop < len(found) else None,
            total=len(found),
            snapshot=newest(run_id, snapshot),
        )

    @app.get("/api/runs/{run_id}/features/{index}", response_model=None)
    def feature(
        run_id: str, index: int, snapshot: int | None = None
    ) -> api.FeatureDetail | Response:
        if index >= D_SAE:
            return _problem(404, f"There is no feature {index}; the last is {D_SAE - 1}.")
        return _detail(world, index, newest(run_id, snapshot))

    @app.get("/api/runs/{run_id}/features/{index}/history")
    def history(run_id: str, index: int) -> FeatureHistory:
        moments = [
            FeatureMoment(
                step=snapshot.step,
                tokens=snapshot.tokens,
                density=world.row(index).density,
                max_activation=1.0,
                state=world.row(index).state,
                decoder_cosine=1.0,
            )
            for snapshot in world.snapshots(run_id)
        ]
        return FeatureHistory(index=index, moments=moments, born_step=None, died_step=None)

    @app.put("/api/runs/{run_id}/features/{index}/label")
    def label(run_id: str, index: int, body: LabelUpdate) -> api.Feature:
        world.labels[index] = body
        row = world.row(index).model_dump(exclude={"example", "top_tokens"})
        return api.Feature.model_validate(row)

    @app.get("/api/runs/{run_id}/lookup")
    def lookup(
        run_id: str,
        text: str,
        match: TokenMatch = "fold",
        limit: int = 20,
        snapshot: int | None = None,
    ) -> LookupResult:
        unseen = text.strip() == "zzz"
        members = [(5, text.strip(), 40), (6, " " + text.strip(), 1234)]
        if match == "exact":
            members = members[:1]
        return LookupResult(
            tokens=[MatchedToken(id=i, text=t, count=0 if unseen else c) for i, t, c in members],
            features=[] if unseen else [_match(rank) for rank in range(min(limit, 20))],
            phrase=False,
            count=0 if unseen else sum(c for *_, c in members),
            suggestions=[],
            message="'zzz' does not occur in this snapshot's text." if unseen else None,
            snapshot=newest(run_id, snapshot),
        )


def _match(rank: int) -> FeatureMatch:
    part = 1 / (rank + 1)
    return FeatureMatch(
        index=rank * 11,
        f1=0.95 * part,
        lift=40 * part,
        recall=0.9 * part,
        precision=0.97 * part,
        mean_activation=1.2,
        max_activation=3.4,
        count=int(1200 * part),
        density=0.02,
        label="imports" if rank == 0 else None,
        example=context(rank, 3.4),
    )


def _detail(world: World, index: int, snapshot: int) -> api.FeatureDetail:
    row = world.row(index)
    kept = world.labels.get(index, LabelUpdate(label="", notes=""))
    alive = row.state == "alive"
    top = row.max_activation

    def examples(first: int, activations: list[float]) -> list[api.Context]:
        return [context(index * 100 + first + i, a) for i, a in enumerate(activations)]

    def interval(fifth: int) -> api.Interval:
        low, high = top * fifth / 5, top * (fifth + 1) / 5
        inside = examples(50 + fifth * 5, [(low + high) / 2] * 5)
        return api.Interval(low=low, high=high, share=0.5 / (5 - fifth), contexts=inside)

    def statistics(rank: int) -> api.TokenStatistics:
        part = 1 / (rank + 1)
        return api.TokenStatistics(
            id=rank,
            text=" " + WORDS[rank],
            count=int(900 * part),
            f1=0.9 * part,
            lift=40 * part,
            recall=0.8 * part,
            precision=0.9 * part,
            mean_activation=top / 2,
            max_activation=top,
        )

    def logits(first: int, sign: int) -> list[api.TokenLogit]:
        return [
            api.TokenLogit(id=i, text=" " + WORDS[first + i], value=sign * (1.4 - i / 10))
            for i in range(10)
        ]

    def neighbour(rank: int) -> api.Neighbour:
        label = "imports" if rank == 1 else None
        return api.Neighbour(index=(index + rank * 7) % D_SAE, cosine=0.6 - rank / 20, label=label)

    base = row.model_dump(exclude={"example", "top_tokens"})
    return api.FeatureDetail(
        **base,
        snapshot=snapshot,
        histogram=api.Histogram(
            edges=[top * i / 40 for i in range(41)],
            counts=[int(900 * math.exp(-i / 8)) if alive else 0 for i in range(40)],
        ),
        contexts=examples(0, [top * (1 - i / 40) for i in range(20)]) if alive else [],
        intervals=[interval(fifth) for fifth in reversed(range(5))] if alive else [],
        top_tokens=[statistics(rank) for rank in range(8)] if alive else [],
        logits=api.Logits(positive=logits(3, 1), negative=logits(7, -1)),
        neighbours=[neighbour(rank) for rank in range(1, 9)],
        notes=kept.notes,
        starred=kept.starred,
    )


def _problem(status: int, detail: str, errors: list[FieldProblem] | None = None) -> JSONResponse:
    body = Problem(
        type="about:blank", title="Refused", status=status, detail=detail, errors=errors or []
    )
    return JSONResponse(body.model_dump(mode="json"), status, media_type="application/problem+json")


if __name__ == "__main__":
    import uvicorn

    served = create_app(World(seconds=120))
    uvicorn.run(served, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning")
