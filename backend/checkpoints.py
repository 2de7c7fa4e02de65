"""What `--load-checkpoint` means by a path."""

from __future__ import annotations

from pathlib import Path

from backend import repository
from backend.db import open_database
from backend.settings import Settings
from sae_engine.errors import UserError
from sae_engine.files import RunFolder


def run_folder_of(path: Path, settings: Settings) -> RunFolder:
    """The run's folder that a path names: itself, its `sae.safetensors` or its checkpoint; or that
    of the run with this id or name.

    Raises `UserError` for anything else.
    """
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise UserError(
            f"'{path}' is a {path.suffix} file, which is not read here (it can hold code); "
            "checkpoints are safetensors: name a run's folder, or its checkpoints/last.safetensors."
        )
    if not path.exists():
        if len(path.parts) > 1:
            raise UserError(f"There is no checkpoint or run folder '{path}'.")
        with (
            open_database(settings.resolved_database_url) as database,
            database.reading() as session,
        ):
            return settings.run_folder(repository.find_run(session, str(path)).id)
    candidates = [path] if path.is_dir() else [path.parent, path.parent.parent]
    for folder in map(RunFolder, candidates):
        if folder.config.exists():
            return folder
    raise UserError(
        f"'{path}' does not belong to a run's folder: there is no config.yaml beside it."
    )


def require_checkpoint(folder: RunFolder) -> RunFolder:
    """Raises `UserError` if the run left nothing to go on from."""
    if not folder.checkpoint.exists():
        raise UserError(f"The run in '{folder.path}' has no checkpoint to go on from.")
    return folder
