"""The badges of alerts."""

from __future__ import annotations

from frontend.runs.alerts import alert_badges, alert_count
from tests.frontend.samples import make_run


def test_what_was_only_true_while_a_run_trained_is_not_shown_after_its_end() -> None:
    run = make_run(status="running", alerts=["throughput", "dead_latents"])
    assert "slow" in alert_badges(run)
    assert "2 alerts" in alert_count(run)
    ended = run.model_copy(update={"status": "finished"})
    assert "slow" not in alert_badges(ended)
    assert "dead latents" in alert_badges(ended)
    assert "1 alert<" in alert_count(ended)
    assert alert_count(make_run(status="finished", alerts=["no_progress"])) == ""
