"""Everything stored in the database: its tables and all SQL.

Uses `migrations`; used by `jobs`, `labels`, `http`, `routes` and `cli`. Functions take a
session and return rows; the caller opens the session and thereby delimits the transaction.
"""

from backend.store.common import ACTIVE, RESUMABLE, folder_id, now, set_folder_id
from backend.store.configs import config_of, readable_config
from backend.store.labels import (
    label,
    labels,
    patch_labels,
    propose_label,
    set_label,
    stars,
    written_labels,
)
from backend.store.listing import RunFilter, RunList, count_tags, list_runs
from backend.store.metrics import add_metrics, forget_after, metrics, metrics_between
from backend.store.queue import queued_runs
from backend.store.reports import (
    Latest,
    add_notice,
    add_snapshot,
    latest_revisions,
    notices,
    resolve_snapshot,
    snapshots,
)
from backend.store.runs import (
    add_run,
    delete_run,
    earlier_request,
    find_run,
    get_run,
    group,
    measured_speed,
    patch_run,
)
from backend.store.states import (
    active_runs,
    claim,
    count_by_status,
    end_run,
    fail_run,
    fail_unreadable,
    is_run_by,
    new_job,
    put_back,
    report_alive,
    request_stop,
    requeue,
    stop_requests,
    take_over,
    update_metrics,
    update_run,
)

__all__ = [
    "ACTIVE",
    "RESUMABLE",
    "Latest",
    "RunFilter",
    "RunList",
    "active_runs",
    "add_metrics",
    "add_notice",
    "add_run",
    "add_snapshot",
    "claim",
    "config_of",
    "count_by_status",
    "count_tags",
    "delete_run",
    "earlier_request",
    "end_run",
    "fail_run",
    "fail_unreadable",
    "find_run",
    "folder_id",
    "forget_after",
    "get_run",
    "group",
    "is_run_by",
    "label",
    "labels",
    "latest_revisions",
    "list_runs",
    "measured_speed",
    "metrics",
    "metrics_between",
    "new_job",
    "notices",
    "now",
    "patch_labels",
    "patch_run",
    "propose_label",
    "put_back",
    "queued_runs",
    "readable_config",
    "report_alive",
    "request_stop",
    "requeue",
    "resolve_snapshot",
    "set_folder_id",
    "set_label",
    "snapshots",
    "stars",
    "stop_requests",
    "take_over",
    "update_metrics",
    "update_run",
    "written_labels",
]
