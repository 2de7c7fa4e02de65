"""Hostile text, and made-up records to draw pages from where no server is needed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sae_engine.presets import resolve_config
from sae_engine.schema.runs import Progress, Run

NASTY = "<script>alert('x')</script>"
ESCAPED = "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;"


def make_run(**changes: Any) -> Run:
    """A run of the preset `tiny` at step 50 of 200, with changes."""
    start = datetime(2030, 1, 1, tzinfo=UTC)
    progress = Progress(
        step=50,
        total_steps=200,
        tokens=51_200,
        total_tokens=204_800,
        tokens_per_second=9_000.0,
        eta_seconds=60.0,
        phase="training",
    )
    whole: dict[str, Any] = {
        "id": "r",
        "name": "r",
        "status": "running",
        "config": resolve_config("tiny", {}),
        "tags": [],
        "notes": "",
        "archived": False,
        "group_id": None,
        "cloned_from": None,
        "queue_position": None,
        "waiting_for": None,
        "alerts": [],
        "device": "cpu",
        "created_at": start,
        "started_at": start,
        "ended_at": start + timedelta(seconds=90),
        "progress": progress,
        "metrics": {},
        "error": None,
        "resumable": False,
    }
    return Run.model_validate(whole | changes)
