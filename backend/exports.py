"""A run's SAE written for another program, from the shell."""

from __future__ import annotations

from pathlib import Path

from backend import repository
from backend.db import open_database
from backend.settings import Settings
from sae_engine.interop.export import export_saelens


def export_here(settings: Settings, run: str, target: Path) -> None:
    """Write the SAE of the run that `run` names into the new folder `target`.

    Raises `UserError` for an unknown run, one without an SAE, or a folder that exists.
    """
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        row = repository.find_run(session, run)
    export_saelens(settings.run_folder(row.id), target)
