"""Odd files and paths in a request are the client's error, in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from backend.settings import Settings, load_settings
from sae_engine.errors import UserError


@pytest.fixture
def model(settings: Settings, client: TestClient) -> Path:
    folder = settings.data_dir / "model"
    folder.mkdir()
    return folder


def asked(client: TestClient, config: dict[str, object]) -> list[str]:
    """What estimate and launch say; both must refuse."""
    details: list[str] = []
    for path in ("/api/config/estimate", "/api/runs"):
        answer = client.post(path, json={"preset": "quick-test", "config": config})
        assert answer.status_code == 422, answer.text
        details.append(answer.json()["detail"])
        assert len(details[-1]) < 1_000
    return details


@pytest.mark.parametrize(
    "content",
    [
        "[]",
        "null",
        "3",
        '"text"',
        "[" * 100_000,
        '{"a":' * 100_000,
        "{",
        "\\xff",
        '{"model_type": "llama", "hidden_size": "wide", "num_hidden_layers": 2}',
        '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": -2}',
        '{"model_type": "llama", "hidden_size": 1e400, "num_hidden_layers": []}',
    ],
)
def test_a_malformed_config_json_is_named(client: TestClient, model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    for detail in asked(client, {"model": {"name": str(model)}}):
        assert "config.json" in detail


@pytest.mark.parametrize("sizes", ["0", '"8"', "null", "[8]", "1e300"])
def test_a_size_that_is_none_is_no_server_error(
    client: TestClient, model: Path, sizes: str
) -> None:
    text = '{"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "vocab_size": 100,'
    (model / "config.json").write_text(
        f'{text} "intermediate_size": 64, "num_attention_heads": {sizes}}}'
    )
    body = {"preset": "quick-test", "config": {"model": {"name": str(model)}}}
    answer = client.post("/api/config/estimate", json=body)
    assert answer.status_code == 422
    assert "config.json" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("section", "field"),
    [("model", "name"), ("data", "dataset"), ("data", "activations"), ("sae", "pretrained")],
)
def test_a_path_that_leads_nowhere_is_named(
    client: TestClient, settings: Settings, section: str, field: str
) -> None:
    loop = settings.data_dir / "loop"
    loop.symlink_to(loop)
    for path in (loop, loop / "below", "~nosuchuser/x"):
        for detail in asked(client, {section: {field: str(path)}}):
            assert "loop" in detail or "not in a folder this server may read" in detail


@pytest.mark.parametrize("name", ["DATA_DIR", "READ_DIRS"])
def test_a_setting_with_an_unknown_user_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(f"SAE_WORKBENCH_{name}", "~nosuchuser/x")
    with pytest.raises(UserError, match=f"SAE_WORKBENCH_{name} = .*nosuchuser"):
        load_settings()


def test_tags_names_and_presets_are_short(client: TestClient) -> None:
    for body in (
        {"tags": ["x" * 101]},
        {"tags": ["x"] * 51},
        {"name": "x" * 201},
        {"notes": "x" * 20_001},
        {"preset": "x" * 201},
    ):
        assert client.post("/api/runs", json=body).status_code == 422
    run = client.post("/api/runs", json={"preset": "quick-test", "tags": ["x" * 100]})
    assert run.status_code == 201
    tags = {"tags": ["x" * 101]}
    assert client.patch(run.headers["location"], json=tags).status_code == 422


def test_a_content_length_of_thousands_of_digits_is_too_large(client: TestClient) -> None:
    headers = {"Content-Length": "9" * 5_000}
    assert client.post("/api/runs", headers=headers, content=b"").status_code == 413
