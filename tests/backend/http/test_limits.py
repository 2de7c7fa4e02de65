"""Limits on the size and the rate of requests."""

from __future__ import annotations

import time

from starlette.testclient import TestClient

from backend.app import create_app
from backend.http.problems import MAX_BODY_BYTES
from backend.http.rates import MAX_CLIENTS, Rate
from backend.settings import Settings
from tests.backend.conftest import URL
from tests.backend.fake_engine import fake_job


def test_changes_beyond_the_rate_limit_get_429_with_retry_after(
    settings: Settings,
) -> None:
    few = settings.model_copy(update={"changes_per_minute": 3})
    with TestClient(create_app(few, command=fake_job), URL) as client:
        answers = [client.post("/api/config/estimate", json={"preset": "tiny"}) for _ in range(5)]
        assert [answer.status_code for answer in answers] == [200, 200, 200, 429, 429]
        refused = answers[-1]
        assert refused.headers["content-type"] == "application/problem+json"
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert "sent more than 3 changes" in refused.json()["detail"]
        assert all(client.get("/api/runs").status_code == 200 for _ in range(20))


def test_a_request_with_a_large_content_length_is_refused_unread(client: TestClient) -> None:
    body = b'{"name": "' + b"x" * MAX_BODY_BYTES + b'"}'
    answer = client.post("/api/runs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["detail"] == "A request may hold at most 4 MiB."
    assert client.get("/api/runs").json()["items"] == []


def test_a_request_without_a_content_length_is_cut_off_at_the_limit(client: TestClient) -> None:
    chunks = (b"x" * 2**20 for _ in range(6))
    answer = client.post("/api/runs", content=chunks, headers={"Content-Type": "application/json"})
    assert answer.status_code == 413


def test_the_rate_depends_on_no_clock_that_can_be_set() -> None:
    now = 0.0
    rate = Rate(2, lambda: now)
    rate.count("a")
    now = 50.0
    rate.count("a")
    assert (rate.wait_seconds("a"), rate.wait_seconds("b")) == (10, 0)
    now = 59.9
    assert rate.wait_seconds("a") == 1
    now = 60.0
    assert rate.wait_seconds("a") == 0
    rate.count("a")
    assert rate.wait_seconds("a") == 50
    assert time.get_clock_info("monotonic").adjustable is False


def test_the_number_of_remembered_clients_is_bounded() -> None:
    rate = Rate(1)
    for number in range(MAX_CLIENTS + 10):
        rate.count(str(number))
    assert len(rate._times) <= MAX_CLIENTS
