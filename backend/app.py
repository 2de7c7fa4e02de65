"""The REST API as an ASGI application. `uvicorn backend.app:app` serves it alone, under `/api`."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from backend.http import problems
from backend.http.limits import RequestLimits
from backend.http.security import AccessGuard
from backend.http.services import Services
from backend.jobs.supervisor import JobCommand, job_command
from backend.playground.client import INFERENCE_COMMAND
from backend.routes import (
    compare,
    exports,
    features,
    imports,
    labels,
    lookup,
    maps,
    metrics,
    runs,
    sweeps,
    system,
    tags,
)
from backend.routes import playground as probe
from backend.settings import Settings, load_settings
from backend.store.label_jobs import settle_label_jobs
from backend.version import VERSION
from sae_engine.schema.problems import Problem

ROUTES = (
    system, runs, tags, sweeps, imports, metrics, features, labels, maps, lookup, probe, compare,
    exports,
)  # fmt: skip
DESCRIPTION = (
    "Train sparse autoencoders on language-model activations and look into their features."
)


def create_api(
    settings: Settings,
    *,
    command: JobCommand = job_command,
    inference: tuple[str, ...] = INFERENCE_COMMAND,
) -> FastAPI:
    """The endpoints, to be mounted at `/api`; `running` must be entered before the first
    request.
    """
    problem: dict[str, Any] = {
        "model": Problem,
        "description": "What is wrong, in one sentence",
        "content": {"application/problem+json": {}},
    }
    api = FastAPIOffline(  # its reference pages load nothing from elsewhere
        title="SAE Workbench",
        version=VERSION,
        description=DESCRIPTION,
        generate_unique_id_function=_operation_id,
        responses=dict.fromkeys((400, 401, 403, 404, 409, 413, 422, 429, 500, 503, 507), problem),
        max_body_size=problems.MAX_BODY_BYTES,
    )
    api.state.services = Services(settings, command, inference)
    problems.install(api)
    for module in ROUTES:
        api.include_router(module.router)
    return api


@asynccontextmanager
async def running(api: FastAPI) -> AsyncGenerator[None]:
    """Prepare the data folder and supervise while the server runs."""
    services: Services = api.state.services
    services.settings.data_dir.mkdir(parents=True, exist_ok=True)
    services.database.prepare()
    with services.database.writing() as session:
        settle_label_jobs(session)
    services.supervisor.start()
    try:
        yield
    finally:
        services.labeler.close()
        services.language_model.close()
        services.supervisor.close()
        services.analyses.close()
        services.database.close()


def create_app(
    settings: Settings,
    *,
    command: JobCommand = job_command,
    inference: tuple[str, ...] = INFERENCE_COMMAND,
) -> Starlette:
    """The API alone, behind the guard."""
    api = create_api(settings, command=command, inference=inference)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with running(api):
            yield

    return Starlette(
        routes=[api_mount(api, settings)],
        middleware=[Middleware(AccessGuard, settings=settings)],
        lifespan=lifespan,
    )


def api_mount(api: FastAPI, settings: Settings) -> Mount:
    """Where the endpoints are found, behind their limits."""
    limits = Middleware(RequestLimits, per_minute=settings.changes_per_minute)
    return Mount("/api", api, middleware=[limits])


def _operation_id(route: APIRoute) -> str:
    return route.name


app = create_app(load_settings())
