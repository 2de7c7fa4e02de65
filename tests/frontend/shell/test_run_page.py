"""What a run without features says about when they will come."""

from __future__ import annotations

import pytest

from frontend.shell.run_page import features_ahead
from sae_engine.presets import resolve_config
from sae_engine.schema.runs import RunStatus
from tests.frontend.samples import make_run

AT_THE_END = "Features appear here at the end of the run."


@pytest.mark.parametrize(
    ("status", "every", "total_steps", "text"),
    [
        ("running", 1200, 5000, "Features appear here after step 1,200."),
        ("queued", 1200, None, "Features appear here after step 1,200."),
        ("running", 1200, 1000, AT_THE_END),
        ("running", None, 5000, AT_THE_END),
        ("failed", 1200, 5000, "This run has no feature index."),
    ],
)
def test_features_are_announced_for_the_first_snapshot(
    status: RunStatus, every: int | None, total_steps: int | None, text: str
) -> None:
    config = resolve_config("tiny", {"train": {"snapshot_every": every}})
    run = make_run(status=status, config=config)
    progress = run.progress.model_copy(update={"total_steps": total_steps})
    assert features_ahead(run.model_copy(update={"progress": progress})) == text
