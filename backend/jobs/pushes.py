"""What of a run is pushed to the hub, and where to. Read by `routes` and `cli`."""

from __future__ import annotations

from sqlalchemy.orm import Session

from backend import store
from backend.errors import ConflictError, ForbiddenError
from backend.settings import Settings
from backend.store.models import RunRow
from sae_engine.hub import HubName
from sae_engine.interop.export import published_step
from sae_engine.interop.push import PushedRun


def pushed_run(settings: Settings, session: Session, row: RunRow) -> PushedRun:
    """A run's SAE and its figures; raises `ConflictError` for an active run or one without SAE."""
    folder = settings.run_folder(row.id)
    if row.status in store.ACTIVE:
        raise ConflictError(
            f"The run '{row.name}' is still {row.status}; push it when it has ended.",
            kind="active",
        )
    if not folder.sae.is_file() or not folder.sae_config.is_file():
        raise ConflictError(f"The run '{row.name}' has no SAE to push.", kind="no-sae")
    config, step = store.config_of(row), published_step(folder)
    if step is None or step >= row.step:
        return PushedRun(folder, row.name, config, row.latest_metrics, row.tokens)
    # The run ended some steps after it last saved its SAE.
    points = store.metrics(session, row.id)
    latest = points.at(points.step <= step).latest()
    return PushedRun(folder, row.name, config, latest, step * config.train.batch_size_tokens)


def require_allowed(settings: Settings, target: str) -> None:
    """Raise `ForbiddenError` for a push that REST clients may not make with this server's token,
    and `UserError` for a target that is no name.
    """
    repository = HubName.parse(target).repository
    if not {repository, repository.partition("/")[0]} & set(settings.push_to):
        raise ForbiddenError(
            f"This server does not push to '{repository}'; add it or its owner to "
            "SAE_WORKBENCH_PUSH_TO.",
            kind="push-not-allowed",
        )
