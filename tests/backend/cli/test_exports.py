"""A run's SAE is exported in the format of SAELens, over REST and from the shell."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load, load_file, save_file
from starlette.testclient import TestClient

from backend.cli.main import main
from backend.settings import Settings
from sae_engine.files import RunFolder
from sae_engine.presets import resolve_config
from tests.backend.conftest import create, wait_for_status

WEIGHTS = {
    "W_enc": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b_enc": np.ones(4, np.float32),
    "W_dec": np.arange(12, dtype=np.float32).reshape(4, 3),
    "b_dec": np.zeros(3, np.float32),
}


def publish(folder: RunFolder, **more: object) -> None:
    """Write what a run leaves in its folder: a configuration and a TopK SAE."""
    model = {"name": "tiny-gemma2", "layer": 1, "site": "mlp_out"}
    config = resolve_config("quick-test", {"model": model})
    folder.path.mkdir(parents=True, exist_ok=True)
    folder.config.write_text(yaml.safe_dump(config.model_dump(mode="json")), "utf-8")
    save_file(WEIGHTS, folder.sae, metadata={"activation": "topk", "k": "2"})
    described = {"architecture": "topk", "d_in": 3, "d_sae": 4, "k": 2, "ctx_len": 128}
    described |= {"model_name": "tiny-gemma2", "hook_name": "layer 1 mlp_out", "dataset": "text"}
    described |= more
    folder.sae_config.write_text(json.dumps(described), "utf-8")


@pytest.mark.parametrize(
    ("more", "step"), [({}, 20), ({"step": 12}, 12), ({"step": 0}, 0), ({"step": None}, 20)]
)
def test_rest_answers_with_a_zip_of_a_saelens_folder(
    client: TestClient, settings: Settings, more: dict[str, object], step: int
) -> None:
    run = create(client, "quick")
    wait_for_status(client, run.id, "finished")
    publish(settings.run_folder(run.id), **more)
    answer = client.get(f"/api/runs/{run.id}/export", params={"format": "saelens"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/zip"
    name = f"quick-step{step}-saelens"
    assert f'filename="{name}.zip"' in answer.headers["content-disposition"]
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        config = json.loads(archive.read(f"{name}/cfg.json"))
        weights = load(archive.read(f"{name}/sae_weights.safetensors"))
    assert {key: config[key] for key in ("architecture", "d_in", "d_sae", "k")} == {
        "architecture": "topk",
        "d_in": 3,
        "d_sae": 4,
        "k": 2,
    }
    assert config["metadata"]["hook_name"] == "blocks.1.hook_mlp_out"
    for key, wanted in WEIGHTS.items():
        np.testing.assert_array_equal(weights[key], wanted)
    assert not list(settings.data_dir.glob(".export-*"))


def test_a_run_without_an_sae_cannot_be_exported(client: TestClient, settings: Settings) -> None:
    run = create(client, "wait")
    settings.run_folder(run.id).sae.unlink(missing_ok=True)
    answer = client.get(f"/api/runs/{run.id}/export")
    assert answer.status_code == 409
    assert answer.json()["detail"] == "The run 'wait' has no SAE to export."
    assert client.get(f"/api/runs/{run.id}/export?format=pt").status_code == 422
    assert client.get("/api/runs/nobody/export").status_code == 404


def test_the_shell_writes_the_same_folder_but_does_not_overwrite_it(
    client: TestClient, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = create(client, "quick")
    wait_for_status(client, run.id, "finished")
    publish(settings.run_folder(run.id))
    command = ["export", run.id, "--format", "saelens", str(tmp_path / "out")]
    command += ["--data-dir", str(settings.data_dir)]
    assert main(command) == 0
    weights = load_file(tmp_path / "out/sae_weights.safetensors")
    np.testing.assert_array_equal(weights["W_enc"], WEIGHTS["W_enc"])
    assert main(command) == 2
    assert "already exists" in capsys.readouterr().err
