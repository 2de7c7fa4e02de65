"""Exports features in any format into a new folder, which appears only when complete."""

from __future__ import annotations

import pkgutil
import shutil
from pathlib import Path

from sae_engine.errors import DiskFullError, UserError
from sae_engine.features.export.source import ExportSource, FeatureWriter
from sae_engine.features.index.manifest import damage_check
from sae_engine.files import published_folder
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat


def export_features(source: ExportSource, format: ExportFormat, target: Path) -> None:
    """Write the features into the new folder `target`.

    Raises `UserError` if `target` exists or the disk has too little space, `IndexDamagedError` for
    a damaged index.
    """
    if target.exists():
        raise UserError(f"'{target}' already exists; name a new folder.")
    writer = _writer(format)
    check_room(target, writer.expected_bytes(source))
    with damage_check(source.index), published_folder(target) as folder:
        writer.write(source, folder)


def _writer(format: ExportFormat) -> FeatureWriter:
    name = EXPORT_FORMATS[format].writer
    assert name is not None, f"{format} is not a format of features"
    return pkgutil.resolve_name(name)


def check_room(target: Path, wanted_bytes: int) -> None:
    """Raise `DiskFullError` if the disk of `target` has less free space than wanted."""
    existing = next(path for path in target.absolute().parents if path.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted_bytes:
        raise DiskFullError(
            f"The export may take {wanted_bytes / 1e9:.1f} GB, but the disk of '{existing}' has "
            f"{free / 1e9:.1f} GB free; free some space, or export to another disk."
        )
