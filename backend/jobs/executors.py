"""Which executor a server uses; the only module that knows them all."""

from __future__ import annotations

from backend.jobs.executor import Executor, JobCommand
from backend.jobs.local_executor import LocalExecutor
from backend.settings import Settings
from backend.store.database import Database


def executor_for(settings: Settings, database: Database, command: JobCommand) -> Executor:
    return LocalExecutor(settings, command, is_shared=not database.is_sqlite)
