"""What `--load-checkpoint` starts from: resolves its path, and copies the state to a new run."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from backend import store
from backend.settings import Settings
from backend.store.database import open_database
from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_file, published_folder


class Source(NamedTuple):
    """What a new run starts from."""

    folder: RunFolder
    """Folder of the earlier run."""
    sae: RunFolder
    """Folder of the SAE that `--eval-only` evaluates: the run's own, or that of its best SAE."""


def source_of(path: Path, settings: Settings) -> Source:
    """A run by its folder, its `sae.safetensors`, its checkpoint, its best SAE, its id or its name.

    Raises `UserError` for anything else.
    """
    if path.suffix in (".pt", ".pth", ".ckpt"):
        raise UserError(
            f"'{path}' is a {path.suffix} file, which could contain code and is never loaded; "
            "checkpoints are safetensors: give a run's folder or its checkpoints/last.safetensors."
        )
    if not path.exists() and len(path.parts) == 1:
        with (
            open_database(settings.resolved_database_url) as database,
            database.reading() as session,
        ):
            path = settings.run_folder(store.find_run(session, str(path)).id).path
    if not path.exists():
        raise UserError(f"There is no checkpoint or run folder '{path}'.")
    real = path.resolve()
    for folder in map(RunFolder, [real, *real.parents[:3]]):
        if folder.config.exists():
            if real in (folder.path, folder.sae, folder.checkpoint):
                return Source(folder, folder)
            if real in (folder.best.path, folder.best.sae):
                return Source(folder, folder.best)
    raise UserError(
        f"'{path}' is neither a run's folder (with a config.yaml) nor an SAE or checkpoint in one."
    )


def checkpoint_of(source: Source) -> RunFolder:
    """The folder of the checkpoint to continue from; raises `UserError` if there is none."""
    if source.sae is not source.folder:
        raise UserError(
            f"'{source.sae.path}' holds an SAE without its optimizer; training continues from the "
            f"run's last checkpoint: give '{source.folder.path}'."
        )
    if not source.folder.has_checkpoint:
        raise UserError(f"The run in '{source.folder.path}' has no checkpoint to continue from.")
    return source.folder


def copy_checkpoint(source: RunFolder, folder: RunFolder) -> None:
    """Copy what a resumed run reads: both checkpoints, since the newest may be damaged, the best
    SAE that they tell of, and the identity of the language model.
    """
    for old, new in (
        (source.checkpoint, folder.checkpoint),
        (source.previous_checkpoint, folder.previous_checkpoint),
        (source.model, folder.model),
    ):
        with suppress(FileNotFoundError), published_file(new) as path:
            shutil.copyfile(old, path)
    if source.best.sae.exists():
        with published_folder(folder.best.path) as path:
            shutil.copytree(
                source.best.path, path, ignore=shutil.ignore_patterns(".*"), dirs_exist_ok=True
            )
