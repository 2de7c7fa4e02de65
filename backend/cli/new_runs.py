"""Adds the runs that a terminal is about to train: first their folders, then their rows."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from backend import store
from backend.cli.checkpoints import copy_checkpoint
from backend.jobs.retry import when_available
from backend.processes import this_process
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from sae_engine.training.member import Member


def add_runs(
    database: Database,
    settings: Settings,
    configs: Sequence[RunConfig],
    job: str,
    group_id: str | None,
    checkpoint: RunFolder | None,
    run_dir: Path | None,
) -> dict[str, Member]:
    """Add runs that share a pass, each with a folder that holds what it continues from. Leaves
    neither runs nor folders if that fails.
    """
    members: dict[str, Member] = {}
    for config in configs:
        run_id = store.new_run_id()
        folder = settings.run_folder(run_id)
        members[run_id] = Member(config, folder, resume=checkpoint is not None)

    def add() -> None:
        with database.writing() as session:
            if store.is_run_by(session, next(iter(members)), job):
                return  # committed before, but the answer was lost
            for run_id, member in members.items():
                store.add_run(
                    session, run_id=run_id, config=member.config, status="running", job=job,
                    group_id=group_id,
                )  # fmt: skip
            store.take_over(session, job, this_process())

    made: list[Path] = []
    try:
        for member in members.values():
            _make_folder(member.folder, run_dir)
            made.append(member.folder.path)
            if checkpoint is not None:
                copy_checkpoint(checkpoint, member.folder)
        when_available(add)
    except BaseException:
        for path in made:
            _remove_folder(path)
        raise
    return members


def _make_folder(folder: RunFolder, run_dir: Path | None) -> None:
    if run_dir is None:
        folder.path.mkdir(parents=True)
    else:
        run_dir.mkdir(parents=True, exist_ok=True)
        folder.path.parent.mkdir(parents=True, exist_ok=True)
        folder.path.symlink_to(run_dir.resolve(), target_is_directory=True)


def _remove_folder(path: Path) -> None:
    target = path.resolve()
    if path.is_symlink():
        path.unlink()
    shutil.rmtree(target, ignore_errors=True)
