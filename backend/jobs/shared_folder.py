"""Proof that every machine of a cluster sees the same data folder: a random id in the database and
in a file of the folder.

Written by servers that use a cluster; checked by them, and by each job before it takes its runs.
"""

from __future__ import annotations

import uuid
from pathlib import Path

from backend import store
from backend.store.database import Database
from sae_engine.errors import UserError
from sae_engine.files import published_file

FILE = "folder-id"


class UnsharedFolderError(UserError):
    """A machine does not see the folder that belongs to the database."""


def claim_folder(database: Database, data_dir: Path) -> None:
    """Connect a new database with a data folder.

    Raises `UnsharedFolderError` if it has another one.
    """
    with database.writing() as session:
        known, found = store.folder_id(session), found_id(data_dir)
        if known is None:
            known = found or str(uuid.uuid4())
            store.set_folder_id(session, known)
            if found is None:
                with published_file(data_dir / FILE) as path:
                    path.write_text(known)
    _require(known, data_dir, "This server")


def check_folder(database: Database, data_dir: Path, node: str) -> None:
    """Raise `UnsharedFolderError` unless a job on this machine sees the servers' data folder."""
    with database.reading() as session:
        known = store.folder_id(session)
    _require(known, data_dir, f"The machine {node}")


def found_id(data_dir: Path) -> str | None:
    try:
        return (data_dir / FILE).read_text().strip()
    except FileNotFoundError:
        return None


def _require(known: str | None, data_dir: Path, who: str) -> None:
    if known is None or found_id(data_dir) != known:
        raise UnsharedFolderError(
            f"{who} does not see the data folder of the database at '{data_dir}'; mount the shared "
            "folder there."
        )
