"""The client: what it sends, and what it makes of answers and failures."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from frontend.api.client import ApiProblem, WorkbenchClient
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.playground import SteerPhase, SteerResult
from sae_engine.schema.runs import MetricsEvent, RunCreate, RunPatch, TagCount
from tests.frontend.workbench import Workbench

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def client(workbench: Workbench) -> WorkbenchClient:
    """A client of the real API."""
    return workbench.client


def _client(handler: Handler, token: str | None = None) -> WorkbenchClient:
    return WorkbenchClient("http://server/", token, transport=httpx.MockTransport(handler))


def test_every_answer_of_the_api_is_parsed_into_its_shape(client: WorkbenchClient) -> None:
    assert client.health().status == "ok"
    assert client.presets()[0].name == "quick-test"
    assert {run.id for run in client.runs().items} == {"finished", "failed", "live"}
    assert [run.id for run in client.runs(status="failed").items] == ["failed"]
    found = client.runs(status=["failed", "running"], sort="name", order="desc", limit=1)
    assert ([run.id for run in found.items], found.total) == (["failed"], 2)
    tagged = client.update_run("failed", RunPatch(tags=["old"]))
    assert client.runs(tags=["old"]).items == [tagged]
    assert TagCount(tag="old", num_runs=1) in client.tags()
    assert client.run("failed").error is not None
    assert client.update_run("failed", RunPatch.model_validate({"name": "new"})).name == "new"
    assert client.metrics("finished").series["eval_fvu"]
    assert client.notices("finished")[0].level == "info"
    assert "loading" in client.log("finished", tail=5)
    snapshots = client.snapshots("finished")
    assert [s.step for s in snapshots] == sorted(s.step for s in snapshots)
    page = client.features("finished", snapshot=100, sort="index", order="asc", limit=3)
    assert [row.index for row in page.items] == [0, 1, 2]
    following = client.features(
        "finished", sort="index", order="asc", limit=3, cursor=page.next_cursor
    )
    assert [row.index for row in following.items] == [3, 4, 5]
    client.label("finished", 7, LabelUpdate(label="seven", starred=True))
    assert client.feature("finished", 7).label == "seven"
    assert client.lookup("finished", " import").count == 840
    client.delete_run("failed")
    assert {run.id for run in client.runs().items} == {"finished", "live"}


def test_the_same_idempotency_key_gives_the_same_run(client: WorkbenchClient) -> None:
    body = RunCreate(preset="tiny", name="a", notes="")
    first = client.create_run(body, idempotency_key="k")
    assert client.create_run(body, idempotency_key="k").id == first.id
    assert client.create_run(body, idempotency_key="l").id != first.id


def test_a_forced_stop_is_sent_as_forced(client: WorkbenchClient, workbench: Workbench) -> None:
    assert client.stop_run("live").status == "stopping"
    assert workbench.runs["live"].force_stop_at is None
    client.stop_run("live", force=True)
    assert workbench.runs["live"].force_stop_at is not None


def test_a_refused_configuration_lists_its_fields(client: WorkbenchClient) -> None:
    body = RunCreate.model_validate({"preset": "tiny", "config": {"model": {"layer": 9}}})
    with pytest.raises(ApiProblem) as caught:
        client.create_run(body)
    assert caught.value.problem.status == 422
    assert caught.value.problem.errors[0].field == "model.layer"
    assert not caught.value.unreachable


@pytest.mark.parametrize("changed_settings", [{"token": "secret"}])
def test_the_token_travels_as_a_bearer(workbench: Workbench) -> None:
    with WorkbenchClient(workbench.url, "secret") as trusted:
        assert trusted.runs().items
    with WorkbenchClient(workbench.url) as stranger, pytest.raises(ApiProblem, match="token"):
        stranger.runs()


def test_unset_parameters_and_fields_are_not_sent() -> None:
    sent: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request)
        return httpx.Response(404)

    client = _client(handler)
    for call in (
        lambda: client.runs(q="a&b", archived=False),
        lambda: client.create_run(RunCreate.model_validate({"preset": "tiny"})),
        lambda: client.run("../secrets?x=1"),
    ):
        with pytest.raises(ApiProblem):
            call()
    assert sent[0].url.query == b"q=a%26b&archived=false"
    assert json.loads(sent[1].content) == {"preset": "tiny"}
    assert sent[2].url.raw_path == b"/api/runs/..%2Fsecrets%3Fx%3D1"


def _refuses_connection(request: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("refused", request=request)


def _is_slow(request: httpx.Request) -> httpx.Response:
    raise httpx.ReadTimeout("slow", request=request)


@pytest.mark.parametrize(
    ("handler", "words"),
    [(_refuses_connection, "cannot be reached"), (_is_slow, "did not answer in time")],
)
def test_an_unreachable_server_and_a_slow_one_get_their_own_messages(
    handler: Handler, words: str
) -> None:
    with pytest.raises(ApiProblem, match=words) as caught:
        _client(handler).health()
    assert caught.value.unreachable


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (httpx.Response(502, text="<html>bad gateway</html>"), "502 Bad Gateway"),
        (httpx.Response(500, json=["not a problem"]), "500 Internal Server Error"),
        (httpx.Response(200, json={"status": "odd"}), "same version"),
    ],
)
def test_an_unexpected_answer_becomes_a_problem_in_words(
    answer: httpx.Response, words: str
) -> None:
    with pytest.raises(ApiProblem, match=words) as caught:
        _client(lambda _: answer).health()
    assert not caught.value.unreachable


def test_activations_arrive_with_the_requested_features(client: WorkbenchClient) -> None:
    answer = client.activations("finished", "import os", top=3, features=[10], snapshot=100)
    assert [token.text for token in answer.tokens] == ["<bos>", "import", " os"]
    assert answer.features[0].activations == [0, 7.5, 0]
    assert answer.snapshot == 100
    assert client.inference().state == "ready"


def test_steering_arrives_token_by_token_and_returns_the_result(
    client: WorkbenchClient, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    stream = client.steer("finished", f"load {gate}", {3: 1.5, 10: -2.0}, seed=4, snapshot=100)
    texts = {"plain": "", "steered": ""}
    phases: list[str] = []
    while True:
        try:
            part = next(stream)
        except StopIteration as end:
            result = end.value
            break
        if isinstance(part, SteerPhase):
            phases.append(part.phase)
            if part.phase == "loading the fake model":
                gate.touch()
        else:
            texts[part.side] += part.text
    assert "loading the fake model" in phases
    assert result == SteerResult(**texts, snapshot=100)


@pytest.mark.parametrize(
    ("run_id", "prompt", "words"),
    [
        ("nope", "import", "There is no run 'nope'"),
        ("finished", "refuse", "The text is invalid; give another."),
        ("finished", "", "The text is empty"),
        ("finished", "break", "ZeroDivisionError: a bug"),
    ],
)
def test_steering_that_fails_before_or_within_the_stream_is_a_problem(
    client: WorkbenchClient, run_id: str, prompt: str, words: str
) -> None:
    with pytest.raises(ApiProblem) as caught:
        list(client.steer(run_id, prompt, {3: 1.0}))
    assert words in str(caught.value)


def _stream(*blocks: str) -> httpx.Response:
    headers = {"content-type": "text/event-stream"}
    return httpx.Response(200, headers=headers, text="".join(f"{block}\n\n" for block in blocks))


def test_events_are_read_by_name_and_heartbeats_skipped() -> None:
    answer = _stream(
        ": still there",
        'id: 3\nevent: metrics\ndata: {"step":1,"tokens":9,"time":0.5,"values":{}}',
        "id: 4",
        "event: unknown\ndata: {}",
    )
    [event] = _client(lambda _: answer).events("r")
    assert event.name == "metrics"
    assert isinstance(event.body, MetricsEvent)
    assert event.body.tokens == 9


def test_a_broken_stream_continues_after_its_last_event(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("frontend.api.runs.RECONNECT_SECONDS", 0)
    asked: list[str] = []

    class Breaking(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            yield b'id: 7\nevent: status\ndata: {"status":"running","step":1,"error":null}\n\n'
            raise httpx.ReadError("broken")

    def handler(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.params["after"])
        if len(asked) == 1:
            headers = {"content-type": "text/event-stream"}
            return httpx.Response(200, headers=headers, stream=Breaking())
        return _stream('id: 8\nevent: status\ndata: {"status":"finished","step":2,"error":null}')

    assert [event.name for event in _client(handler).events("r")] == ["status", "status"]
    assert asked == ["0", "7"]


def test_a_stream_that_ends_without_a_result_is_a_problem() -> None:
    token = 'event: token\ndata: {"side": "plain", "text": "a"}\n\n'
    client = _client(lambda _: _stream(token.strip()))
    with pytest.raises(ApiProblem, match="answer was cut off"):
        list(client.steer("finished", "import", {3: 1.0}))
