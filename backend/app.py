"""The REST API as an ASGI application.

`uvicorn backend.app:app` serves it alone under `/api`; `backend.serve` mounts it beside the pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from pkgutil import iter_modules

from anyio import to_thread
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi_offline import FastAPIOffline
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.routing import Mount

from backend import routes
from backend.http import problems
from backend.http.base_path import BasePath
from backend.http.connections import report_exhaustion
from backend.http.limits import RequestLimits
from backend.http.repeats import quiet_repeats
from backend.http.security import AccessGuard
from backend.http.services import REQUEST_WAIT_SECONDS, Services
from backend.jobs.supervisor import JobCommand, job_command
from backend.playground.client import INFERENCE_COMMAND
from backend.processes import on_exit_signal
from backend.settings import Settings, load_settings
from backend.version import VERSION

ROUTERS: list[APIRouter] = [
    import_module(f"{routes.__name__}.{module.name}").router
    for module in iter_modules(routes.__path__)
]
"""The `router` of every module of `backend.routes`."""
TAGS = ("system", "runs", "metrics", "features", "labels", "probe", "compare")
"""Sections of the reference at `/api/docs`, in this order."""
THREADS = 64
"""Requests that work at a time; `http.limits` leaves most of them to those who read."""
DESCRIPTION = "Train sparse autoencoders on language-model activations and inspect their features."


def create_api(
    settings: Settings,
    *,
    command: JobCommand = job_command,
    inference: tuple[str, ...] = INFERENCE_COMMAND,
    busy_seconds: float = REQUEST_WAIT_SECONDS,
) -> FastAPI:
    """The endpoints, to be mounted at `/api`; enter `running` before the first request.

    A request waits `busy_seconds` for other writers.
    """
    api = FastAPIOffline(  # its reference pages load nothing from other hosts
        title="SAE Workbench",
        version=VERSION,
        description=DESCRIPTION,
        openapi_tags=[{"name": tag} for tag in TAGS],
        generate_unique_id_function=_operation_id,
        responses=problems.RESPONSES,
        max_body_size=problems.MAX_BODY_BYTES,
    )
    api.state.services = Services(settings, command, inference, busy_seconds)
    problems.install(api)
    for router in ROUTERS:
        api.include_router(router)
    return api


@asynccontextmanager
async def running(api: FastAPI) -> AsyncGenerator[None]:
    """Start the services of `api` and close them at the end of the block."""
    services: Services = api.state.services
    to_thread.current_default_thread_limiter().total_tokens = THREADS
    quiet_repeats()
    asyncio.get_running_loop().set_exception_handler(report_exhaustion)
    services.start()
    try:
        with on_exit_signal(services.end_streams):
            yield
    finally:
        services.close()


def create_app(
    settings: Settings,
    *,
    command: JobCommand = job_command,
    inference: tuple[str, ...] = INFERENCE_COMMAND,
    busy_seconds: float = REQUEST_WAIT_SECONDS,
) -> Starlette:
    """The API without the pages, behind the access guard."""
    api = create_api(settings, command=command, inference=inference, busy_seconds=busy_seconds)

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        async with running(api):
            yield

    return Starlette(
        routes=[api_mount(api, settings)],
        middleware=access(settings),
        lifespan=lifespan,
    )


def access(settings: Settings) -> list[Middleware]:
    """What every request passes first."""
    return [
        Middleware(BasePath, base=settings.base_path),
        Middleware(AccessGuard, settings=settings),
    ]


def api_mount(api: FastAPI, settings: Settings) -> Mount:
    """The endpoints under `/api`, behind the request limits."""
    limits = Middleware(RequestLimits, per_minute=settings.changes_per_minute)
    return Mount("/api", api, middleware=[limits])


def _operation_id(route: APIRoute) -> str:
    return route.name


def __getattr__(name: str) -> Starlette:
    """Make `app` on first access, so that importing this module opens no database."""
    if name != "app":
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    app = create_app(load_settings())
    globals()["app"] = app
    return app
