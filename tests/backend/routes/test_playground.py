"""Reading text and steering over REST on a real index, with a fake language-model process and with
the real one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import httpx
import pytest
import torch
import uvicorn
from starlette.testclient import TestClient

from backend import store
from backend.app import create_app
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.model.language_model import LanguageModel
from sae_engine.playground.read import ProbeModel, read_text
from sae_engine.playground.steer import steer
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import SAE, JumpReLUSAE, TopKSAE
from sae_engine.schema.labels import LabelUpdate
from sae_engine.schema.playground import SteerResult, TextActivations
from tests.backend.conftest import URL, wait_for
from tests.backend.fake_engine import fake_job
from tests.backend.fake_inference import FAKE_INFERENCE
from tests.backend.indexed import D_SAE, add_indexed_run

ALIVE, DEAD = 4, 29
STREAM = {"Accept": "text/event-stream"}


@pytest.fixture
def run_id(settings: Settings, database: Database) -> str:
    return add_indexed_run(settings, database, status="running")


@pytest.fixture
def client(settings: Settings, database: Database) -> Iterator[TestClient]:
    app = create_app(settings, command=fake_job, inference=FAKE_INFERENCE)
    with TestClient(app, URL) as client:
        yield client


def largest(settings: Settings, run_id: str, step: int, feature: int) -> float:
    index = FeatureIndex.open(settings.run_folder(run_id).feature_index(step))
    return index.feature(feature).max_activation


def test_an_answer_has_the_snapshots_step_labels_and_largest_activations(
    client: TestClient, settings: Settings, database: Database, run_id: str
) -> None:
    with database.writing() as session:
        for feature in (1, 3, 5):
            store.set_label(session, run_id, feature, LabelUpdate(label=f"label {feature}"))
    body = {"text": "read", "features": [3, ALIVE]}
    for query, step in [("", 7), ("?snapshot=3", 3)]:
        answer = client.post(f"/api/runs/{run_id}/activations{query}", json=body)
        found = TextActivations.model_validate_json(answer.content)
        assert found.snapshot == step
        assert found.labels == {1: "label 1", 3: "label 3"}
        assert [f.index for f in found.features] == [3, ALIVE]
        assert found.features[1].max_activation == largest(settings, run_id, step, ALIVE) > 0
        assert found.features[1].activations == [0.5]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "The text is empty"),
        ("x" * 2**20, "1,048,576 characters; give at most 20,000"),
        ("a\x00b", "the control character U+0000 at position 1"),
        ("a\x1b[31m", "the control character U+001B at position 1"),
        ("ab\ud800", "half a character, U+D800 at position 2"),
    ],
)
def test_invalid_text_is_refused_without_repeating_it(
    client: TestClient, run_id: str, text: str, words: str
) -> None:
    headers = {"Content-Type": "application/json"}
    for path, body in [
        ("activations", {"text": text}),
        ("steer", {"prompt": text, "features": [{"index": 1, "strength": 1}]}),
    ]:
        url = f"/api/runs/{run_id}/{path}"
        answer = client.post(url, content=json.dumps(body), headers=headers)
        assert answer.status_code == 422
        limit = words if path == "activations" else words.replace("20,000", "8,000")
        assert limit in answer.json()["detail"]
        assert len(answer.content) < 600
    assert client.get("/api/inference").json()["state"] == "off"


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("activations", {"text": "a", "features": [30]}, "features 0 to 29"),
        ("activations", {"text": "a", "features": [-1]}, "at least 0"),
        ("activations", {"text": "a", "top": 0}, "at least 1"),
        ("steer", {"features": [{"index": 30, "strength": 1}]}, "no feature 30"),
        ("steer", {"features": [{"index": DEAD, "strength": 1}]}, f"Feature {DEAD} never fired"),
        ("steer", {"features": [{"index": 1, "strength": 101}]}, "at most 100"),
        ("steer", {"features": []}, "at least 1"),
        ("steer", {"features": [{"index": 1, "strength": 1}], "max_new_tokens": 0}, "at least 1"),
        ("steer", {"features": [{"index": 1, "strength": 1}], "temperature": -1}, "at least 0"),
    ],
)
def test_numbers_out_of_bounds_are_refused(
    client: TestClient, run_id: str, path: str, body: dict, words: str
) -> None:
    if path == "steer":
        body = {"prompt": "a", **body}
    answer = client.post(f"/api/runs/{run_id}/{path}", json=body)
    assert (answer.status_code, words in answer.json()["detail"]) == (422, True), answer.text
    assert client.get("/api/inference").json()["state"] == "off"


def test_a_non_finite_strength_is_refused(client: TestClient, run_id: str) -> None:
    for strength in ("NaN", "Infinity"):
        content = f'{{"prompt": "a", "features": [{{"index": 1, "strength": {strength}}}]}}'
        headers = {"Content-Type": "application/json"}
        answer = client.post(f"/api/runs/{run_id}/steer", content=content, headers=headers)
        assert answer.status_code == 422


@pytest.mark.parametrize("path", ["activations", "steer"])
def test_a_run_without_a_language_model_or_features_says_so(
    client: TestClient, settings: Settings, database: Database, path: str
) -> None:
    body = {"text": "a"} if path == "activations" else {"prompt": "a"}
    if path == "steer":
        body["features"] = [{"index": 1, "strength": 1}]  # pyright: ignore[reportArgumentType]
    of_files = add_indexed_run(settings, database, data={"activations": "acts"})
    absent = add_indexed_run(settings, database, model={"name": "absent"})
    with database.writing() as session:
        early = store.add_run(session, config=resolve_config("quick-test", {})).id
    for run_id, words in [
        (of_files, "was trained on activation files"),
        (absent, "There is no model 'absent'."),
        (early, "has no features yet"),
    ]:
        answer = client.post(f"/api/runs/{run_id}/{path}", json=body)
        assert (answer.status_code, words in answer.json()["detail"]) == (409, True), answer.text
    assert client.post(f"/api/runs/nobody/{path}", json=body).status_code == 404


def test_a_killed_process_gives_503_with_retry_after(client: TestClient, run_id: str) -> None:
    url = f"/api/runs/{run_id}/activations"
    answer = client.post(url, json={"text": "die"})
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert "SIGKILL" in answer.json()["detail"]
    assert client.post(url, json={"text": "break"}).status_code == 500
    assert client.post(url, json={"text": "read"}).status_code == 200


def steer_body(prompt: str, **more: object) -> dict[str, object]:
    features = [{"index": ALIVE, "strength": 2}]
    return {"prompt": prompt, "features": features, "max_new_tokens": 3, **more}


def events_of(text: str) -> list[tuple[str, dict]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if line[0] != ":")
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def test_steering_answers_at_once_or_token_by_token(client: TestClient, run_id: str) -> None:
    url = f"/api/runs/{run_id}/steer"
    whole = client.post(url, json=steer_body("go"))
    expected = SteerResult(plain="p0p1p2", steered="s0s1s2", snapshot=7)
    assert SteerResult.model_validate_json(whole.content) == expected
    streamed = client.post(url, json=steer_body("go"), headers=STREAM)
    assert streamed.headers["content-type"].startswith("text/event-stream")
    events = events_of(streamed.text)
    tokens = [data for name, data in events if name == "token"]
    assert "".join(t["text"] for t in tokens if t["side"] == "steered") == expected.steered
    assert events[-1] == ("result", expected.model_dump())


@pytest.mark.parametrize(("prompt", "status"), [("refuse", 422), ("break", 500), ("die", 503)])
def test_a_failing_stream_ends_with_a_problem_event(
    client: TestClient, run_id: str, prompt: str, status: int
) -> None:
    url = f"/api/runs/{run_id}/steer"
    name, data = events_of(client.post(url, json=steer_body(prompt), headers=STREAM).text)[-1]
    assert (name, data["status"]) == ("problem", status)
    whole = client.post(url, json=steer_body(prompt))
    assert whole.status_code == status
    assert whole.json() == data


def test_closing_the_stream_cancels_the_steering(
    settings: Settings, database: Database, run_id: str, tmp_path: Path
) -> None:
    app = create_app(settings, command=fake_job, inference=FAKE_INFERENCE)
    config = uvicorn.Config(app, port=0, log_config=None, ws="none")
    server = uvicorn.Server(config)
    thread = Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        url = f"http://127.0.0.1:{port}/api"
        body = steer_body(f"slow {tmp_path / 'ended'}", max_new_tokens=512)
        with (
            httpx.Client(trust_env=False) as http,
            http.stream("POST", f"{url}/runs/{run_id}/steer", json=body, headers=STREAM) as stream,
        ):
            lines = stream.iter_lines()
            assert any(line == "event: token" for line in lines)
            assert not (tmp_path / "ended").exists()
        wait_for(lambda: httpx.get(f"{url}/inference", trust_env=False).json()["waiting"] == 0)
        wait_for((tmp_path / "ended").exists)
    finally:
        server.should_exit = True
        thread.join()


# With the real process


def jumprelu() -> JumpReLUSAE:
    sae = JumpReLUSAE(192, D_SAE)
    for parameter in sae.parameters():
        parameter.data.normal_()
    sae.threshold.fill_(5.0)
    return sae.requires_grad_(False)


def topk() -> TopKSAE:
    sae = TopKSAE(192, D_SAE, 4)
    sae.initialize_(0, torch.randn(192))
    return sae.folded(1.0)


@pytest.mark.timeout(600)
def test_the_real_process_agrees_with_the_engine_while_the_run_trains(
    settings: Settings, database: Database
) -> None:
    torch.manual_seed(0)
    saes: dict[int, SAE] = {3: jumprelu(), 7: topk()}
    options = {step: {"write_sae": sae.save} for step, sae in saes.items()}
    run_id = add_indexed_run(settings, database, status="running", options=options)
    text, strengths = "import os\nprint('é')", [{"index": ALIVE, "strength": -1.5}]
    model = ProbeModel.of(LanguageModel.load(resolve_config("quick-test", {}).model))
    model.identity.save(settings.run_folder(run_id).model)
    with TestClient(create_app(settings), URL) as client:
        for step, sae in saes.items():
            body = {"text": text, "top": 3, "features": [ALIVE]}
            answer = client.post(f"/api/runs/{run_id}/activations?snapshot={step}", json=body)
            found = TextActivations.model_validate_json(answer.content)
            expected = read_text(model, sae, text, ctx_len=256, top=3, features=[ALIVE])
            assert [t.text for t in found.tokens] == [t.text for t in expected.tokens]
            for mine, theirs in zip(found.tokens, expected.tokens, strict=True):
                assert [f.index for f in mine.features] == [f.index for f in theirs.features]
                assert mine.total == pytest.approx(theirs.total, rel=1e-4)
            assert found.features[0].activations == pytest.approx(expected.activations[0], rel=1e-4)
            body = {"prompt": text, "features": strengths, "max_new_tokens": 8, "temperature": 0}
            answer = client.post(f"/api/runs/{run_id}/steer?snapshot={step}", json=body)
            amount = -1.5 * largest(settings, run_id, step, ALIVE)
            tokens = list(
                steer(model, sae, text, {ALIVE: amount}, max_new_tokens=8, temperature=0.0)
            )
            assert answer.json() == {
                side: "".join(t.text for t in tokens if t.side == side)
                for side in ("plain", "steered")
            } | {"snapshot": step}
        settings.run_folder(run_id).feature_index(3).joinpath("sae.safetensors").unlink()
        gone = client.post(f"/api/runs/{run_id}/activations?snapshot=3", json={"text": "a"})
        assert (gone.status_code, "sae.safetensors" in gone.json()["detail"]) == (409, True)
        weights = {name: [9.0] * 4 for name in model.identity.weights}
        other = model.identity.model_copy(update={"weights": weights})
        other.save(settings.run_folder(run_id).model)
        changed = client.post(f"/api/runs/{run_id}/activations", json={"text": "a"})
        words = "has changed since this run began"
        assert (changed.status_code, words in changed.json()["detail"]) == (409, True)
        settings.run_folder(run_id).model.unlink()  # older runs; the index has another vocabulary
        older = client.post(f"/api/runs/{run_id}/activations", json={"text": "a"})
        assert older.json() == changed.json()
        assert client.get("/api/inference").json()["state"] == "ready"
