"""Runs whose machine was lost: they are requeued automatically, a limited number of times.

Called by the supervisor. Each loss is stored as a notice at the step of the newest checkpoint, so
that any server can count the losses without progress between them.
"""

from __future__ import annotations

import logging

from sqlalchemy.orm import Session

from backend import store
from backend.jobs.logs import LOG_TAIL_LINES, tail
from backend.store.models import RunRow
from sae_engine.files import RunFolder
from sae_engine.training.position import saved_position

MOST_LOSSES = 3
"""How often a run is queued again without a new checkpoint."""

_log = logging.getLogger(__name__)


def queue_again_after_loss(session: Session, row: RunRow, folder: RunFolder, node: str) -> None:
    """Record that an active run was interrupted, and queue it again unless it was asked to stop or
    its machine was lost too often.
    """
    step, was_stopping = saved_position(folder).step, row.status == "stopping"
    losses = 1 + sum(
        n.kind == "node_lost" and n.step == step for n in store.notices(session, row.id)
    )
    message = f"The machine {node} was lost, or its connection."
    if losses > MOST_LOSSES:
        message += f" The run was queued again {MOST_LOSSES} times without a new checkpoint."
    store.fail_run(
        session, row.id, "interrupted", kind="NodeLost", message=message,
        log_tail=tail(folder.log, LOG_TAIL_LINES),
    )  # fmt: skip
    _log.warning("run %s is interrupted: %s", row.id, message)
    if losses > MOST_LOSSES or was_stopping:
        return
    store.requeue(session, row.id, first=True)
    store.add_notice(
        session, row.id, level="warning", kind="node_lost", step=step,
        message=f"{message} The run was queued again ({losses} of {MOST_LOSSES} times).",
    )  # fmt: skip
