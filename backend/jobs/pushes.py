"""What of a run is pushed to the hub. Read by `routes` and `cli`."""

from __future__ import annotations

from backend import store
from backend.errors import ConflictError
from backend.settings import Settings
from backend.store.models import RunRow
from sae_engine.interop.push import PushedRun


def pushed_run(settings: Settings, row: RunRow) -> PushedRun:
    """A run's SAE and figures; raises `ConflictError` for a run that is active or has no SAE."""
    folder = settings.run_folder(row.id)
    if row.status in store.ACTIVE:
        raise ConflictError(
            f"The run '{row.name}' is still {row.status}; push it when it has ended.",
            kind="active",
        )
    if not folder.sae.is_file() or not folder.sae_config.is_file():
        raise ConflictError(f"The run '{row.name}' has no SAE to push.", kind="no-sae")
    return PushedRun(folder, row.name, store.config_of(row), row.latest_metrics, row.tokens)
