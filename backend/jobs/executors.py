"""Which executor a server uses; the only module that knows them all."""

from __future__ import annotations

from backend.jobs.executor import Executor, JobCommand
from backend.jobs.local_executor import LocalExecutor
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import UserError


def executor_for(settings: Settings, database: Database, command: JobCommand) -> Executor:
    """Raises `UserError` as `require_shared_database` does."""
    local = LocalExecutor(settings, command, is_shared=not database.is_sqlite)
    if settings.ray_url is None:
        return local
    require_shared_database(settings)
    from backend.jobs.ray_api import RayApi
    from backend.jobs.ray_executor import RayExecutor

    token = settings.ray_token.get_secret_value() if settings.ray_token else None
    return RayExecutor(settings, database, command, RayApi(settings.ray_url, token), local)


def require_shared_database(settings: Settings) -> None:
    """Raise `UserError` for a cluster with a database that its machines cannot reach."""
    if settings.resolved_database_url.startswith("sqlite"):
        raise UserError(
            "The machines of a Ray cluster (SAE_WORKBENCH_RAY_URL) cannot use an SQLite database; "
            "set SAE_WORKBENCH_DATABASE_URL to the URL of a PostgreSQL one."
        )
