"""`sae-workbench export` and `push`: a run's SAE or features, for other programs and people."""

from __future__ import annotations

from pathlib import Path

from backend import store
from backend.jobs.pushes import pushed_run
from backend.settings import STYLE_SHEET, Settings
from backend.store.database import open_database
from sae_engine.features.export.source import ExportSource
from sae_engine.features.export.write import export_features
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.interop.export import export_saelens
from sae_engine.interop.push import push_sae
from sae_engine.schema.exports import EXPORT_FORMATS, ExportFormat
from sae_engine.schema.saes import Pushed


def push_here(settings: Settings, run: str, target: str, *, private: bool) -> Pushed:
    """Push a run's SAE to the hub; raises `UserError` or `ApiError`."""
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        pushed = pushed_run(settings, session, store.find_run(session, run))
    return push_sae(pushed, target, private=private)


def export_here(
    settings: Settings,
    run: str,
    target: Path,
    *,
    format: ExportFormat,
    snapshot: int | None = None,
    include_dead: bool = False,
) -> str:
    """Export a run into the new folder `target`; returns a note on what is left out.

    Raises `UserError` or `ApiError` for an unknown run, one without an SAE or features, or a folder
    that exists.
    """
    with (
        open_database(settings.resolved_database_url) as database,
        database.reading() as session,
    ):
        row = store.find_run(session, run)
        folder = settings.run_folder(row.id)
        if EXPORT_FORMATS[format].writer is None:
            export_saelens(folder, target)
            return ""
        step = store.resolve_snapshot(session, row, snapshot)
        labels = store.written_labels(session, row.id)
    source = ExportSource(
        index=FeatureIndex.open(folder.feature_index(step)),
        run_id=row.id,
        run_name=row.name,
        config=store.config_of(row),
        labels=labels,
        include_dead=include_dead,
        style=STYLE_SHEET.read_text("utf-8"),
    )
    export_features(source, format, target)
    return source.left_out
