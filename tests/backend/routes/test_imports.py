"""SAEs trained elsewhere become runs, over REST and on the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file
from starlette.testclient import TestClient

from backend import store
from backend.cli.main import main
from backend.cli.options import import_from
from backend.cli.train import train_here
from backend.settings import Settings
from backend.store.database import Database
from sae_engine.errors import UserError
from sae_engine.interop.archives import unpacked
from sae_engine.presets import resolve_config
from sae_engine.schema.fields import Value
from sae_engine.schema.runs import ENDED, Run
from tests.backend.conftest import wait_for_status
from tests.backend.fake_engine import train as fake_train


@pytest.fixture
def sae(settings: Settings) -> Path:
    """A file in a readable folder, beside settings that name neither model nor place."""
    return write_sae(settings.data_dir / "their-sae")


def write_sae(folder: Path, **metadata: object) -> Path:
    """An SAE of SAELens; only the engine reads its tensors."""
    folder.mkdir(parents=True)
    path = folder / "sae_weights.safetensors"
    save_file({"W_dec": np.zeros((4, 2), np.float32)}, path)
    settings = {"architecture": "topk", "k": 1, "metadata": metadata}
    (folder / "cfg.json").write_text(json.dumps(settings))
    return path


def post(client: TestClient, path: Path, **more: object):
    body = {"path": str(path), "model": "tiny-gemma2", "layer": 1, **more}
    return client.post("/api/imports", json={k: v for k, v in body.items() if v is not None})


def test_an_import_is_a_run_with_the_files_sae(client: TestClient, sae: Path) -> None:
    index = {"index": {"tokens": 2000}, "sae": {"k": 8}}
    more = {"site": "mlp_out", "preset": "quick-test", "config": index, "tags": ["theirs"]}
    answer = post(client, sae, format="saelens", **more)
    assert answer.status_code == 201, answer.text
    run = Run.model_validate_json(answer.content)
    assert answer.headers["location"] == f"/api/runs/{run.id}"
    assert (run.name, run.tags) == ("their-sae", ["theirs"])
    assert (run.config.sae.pretrained, run.config.sae.pretrained_format) == (str(sae), "saelens")
    assert (run.config.sae.d_sae, run.config.sae.expansion_factor) == (None, None)
    assert (run.config.model.name, run.config.model.layer) == ("tiny-gemma2", 1)
    assert (run.config.model.site, run.config.index.tokens) == ("mlp_out", 2000)
    assert wait_for_status(client, run.id, "finished", "failed").status == "finished"


def test_a_hook_point_replaces_the_layer(client: TestClient, sae: Path) -> None:
    answer = post(client, sae, layer=None, hook_point="model.layers.1.mlp", name="mlp")
    assert answer.status_code == 201
    assert answer.json()["config"]["model"]["hook_point"] == "model.layers.1.mlp"
    assert answer.json()["name"] == "mlp"


def test_one_idempotency_key_imports_once(client: TestClient, sae: Path) -> None:
    def send(**more: object):
        body = {"path": str(sae), "model": "tiny-gemma2", "layer": 1, **more}
        return client.post("/api/imports", json=body, headers={"Idempotency-Key": "once"})

    assert send().json()["id"] == send().json()["id"]
    assert send(name="other").status_code == 422


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        ({"format": "pickle"}, "format", "'saelens'"),
        ({"layer": None}, "layer", "or its hook_point"),
        ({"layer": 99}, "model.layer", "Layer 99 does not exist"),
        ({"model": "/etc"}, "model.name", "is not in a folder"),
        ({"model": None}, "model", "do not name its language model; give it"),
        ({"config": {"model": 3}}, "model", "section with fields"),
        ({"config": {"sae": {"kk": 3}}}, "sae.kk", "did you mean sae.k?"),
    ],
)
def test_an_invalid_import_is_refused(
    client: TestClient, sae: Path, changes: dict, field: str, words: str
) -> None:
    answer = post(client, sae, **changes)
    assert answer.status_code == 422
    [problem] = answer.json()["errors"]
    assert problem["field"] == field
    assert words in problem["message"]


def test_files_outside_the_readable_folders_are_neither_read_nor_distinguished(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"")
    link = settings.data_dir / "link.safetensors"
    link.symlink_to(secret)
    folder = settings.data_dir / "folder"
    folder.mkdir()
    (folder / "params.npz").symlink_to(secret)
    for path in (secret, tmp_path / "nothing.safetensors", link, folder):
        answer = post(client, path)
        assert answer.status_code == 422
        assert "is not in a folder that this server may read" in answer.text
    assert client.get("/api/runs").json()["items"] == []


@pytest.mark.parametrize(
    ("name", "words"),
    [("absent.safetensors", "There is no file or folder"), ("ae.pt", "There is no file or folder")],
)
def test_a_path_that_is_not_an_sae_is_refused(
    client: TestClient, sae: Path, name: str, words: str
) -> None:
    answer = post(client, sae.with_name(name))
    assert answer.status_code == 422
    assert words in answer.text


def test_the_command_line_imports_with_any_configuration_field(
    settings: Settings, database: Database, sae: Path
) -> None:
    values: dict[str, Value] = {
        "model.name": "tiny-gemma2",
        "model.layer": 3,
        "data.ctx_len": 64,
    }
    request = import_from(str(sae), values, "theirs")
    assert train_here(settings, request, train=fake_train) == 0
    with database.reading() as session:
        [row] = store.list_runs(session).rows
    assert (row.name, row.status) == ("theirs", "finished")
    assert row.config["sae"]["pretrained"] == str(sae)
    assert (row.config["model"]["layer"], row.config["data"]["ctx_len"]) == (3, 64)


def test_a_runs_folder_brings_its_configuration(tmp_path: Path) -> None:
    theirs = resolve_config("quick-test", {"model": {"layer": 3}, "sae": {"d_sae": 64, "k": 4}})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(theirs.model_dump(mode="json")))
    request = import_from(str(tmp_path), {"index.tokens": 5000}, None)
    config = resolve_config(request.preset, request.config)
    assert (config.model.layer, config.data) == (3, theirs.data)
    assert (config.sae.pretrained, config.index.tokens) == (str(tmp_path), 5000)
    assert request.name == tmp_path.name


def test_without_a_model_the_command_line_asks_for_one(sae: Path) -> None:
    for values in ({}, {"model.name": "gpt2"}, {"model.layer": 1}):
        with pytest.raises(UserError, match="--model NAME and --layer N"):
            import_from(str(sae), values, None)


PLACES = [
    ("blocks.3.hook_mlp_out", {"layer": 3, "site": "mlp_out"}),
    ("blocks.1.hook_resid_pre", {"layer": 0, "site": "resid_post"}),
    (
        "model.layers.1.self_attn.o_proj.input",
        {"hook_point": "model.layers.1.self_attn.o_proj", "hook_io": "input"},
    ),
]


@pytest.mark.parametrize(("hook_name", "place"), PLACES)
def test_model_and_place_are_taken_from_the_saes_files(
    client: TestClient, settings: Settings, hook_name: str, place: dict
) -> None:
    path = write_sae(settings.data_dir / "x", hook_name=hook_name, model_name="tiny-gemma2")
    found = client.get("/api/imports/found", params={"path": str(path)})
    assert found.status_code == 200, found.text
    assert found.json()["model"] == "tiny-gemma2"
    assert found.json()["place"] == hook_name
    assert place.items() <= found.json().items()
    answer = post(client, path, model=None, layer=None)
    assert answer.status_code == 201, answer.text
    assert place.items() <= answer.json()["config"]["model"].items()
    assert answer.json()["config"]["model"]["name"] == "tiny-gemma2"
    request = import_from(str(path), {"model.name": "other"}, None)
    assert request.config["model"] == {"name": "other"} | place
    given: dict[str, Value] = {"model.layer": 5}
    assert import_from(str(path), given, None).config["model"]["layer"] == 5


def test_a_place_that_cannot_be_named_says_what_to_give(
    client: TestClient, settings: Settings
) -> None:
    path = write_sae(
        settings.data_dir / "x", hook_name="blocks.1.hook_resid_mid", model_name="tiny-gemma2"
    )
    found = client.get("/api/imports/found", params={"path": str(path)}).json()
    assert "set model.hook_point" in found["remedy"]
    answer = post(client, path, layer=None)
    assert answer.status_code == 422
    assert "trained on blocks.1.hook_resid_mid: " in answer.json()["errors"][0]["message"]
    assert post(client, path, layer=None, hook_point="model.layers.1").status_code == 201


@pytest.mark.parametrize("name", ["absent", "secret"])
def test_nothing_outside_the_readable_folders_is_described(
    client: TestClient, settings: Settings, tmp_path: Path, name: str
) -> None:
    write_sae(tmp_path / "secret", model_name="hidden")
    answer = client.get("/api/imports/found", params={"path": str(tmp_path / name)})
    assert answer.status_code == 422
    assert "is not in a folder that this server may read" in answer.text
    inside = settings.data_dir / "layers.3"
    write_sae(inside, model_name="x")
    (settings.data_dir / "config.json").symlink_to(tmp_path / "secret" / "cfg.json")
    answer = client.get("/api/imports/found", params={"path": str(inside)})
    assert "config.json' is not in a folder that this server may read" in answer.text


def test_a_name_on_the_hub_is_accepted_as_a_path(client: TestClient) -> None:
    """The hub is first asked by the job, if model and place are given."""
    path = Path("hub:google/gemma-scope-2b-pt-res/layer_1/width_16k")
    answer = post(client, path)
    assert answer.status_code == 201, answer.text
    assert answer.json()["config"]["sae"]["pretrained"] == str(path)
    assert answer.json()["name"] == "gemma-scope-2b-pt-res/layer_1/width_16k"
    answer = post(client, Path("hub:nothing"))
    assert answer.status_code == 422
    assert "write hub:OWNER/NAME/PATH" in answer.text


@pytest.mark.parametrize(
    "path",
    ["~nobody-of-that-name/x", "hub:a--b/c..d", "hub:a/" + "b" * 200, "hub:.../x", "hub:é/x"],
)
def test_an_impossible_path_is_refused_in_one_sentence(client: TestClient, path: str) -> None:
    for answer in (
        client.get("/api/imports/found", params={"path": path}),
        client.post("/api/imports", json={"path": path}),
    ):
        assert answer.status_code == 422, path


def test_an_unreachable_hub_is_reported_in_one_sentence(client: TestClient) -> None:
    answer = client.get("/api/imports/found", params={"path": "hub:some/sae"})
    assert answer.status_code == 422
    assert "the Hugging Face hub cannot be reached" in answer.json()["detail"]


def test_the_import_command_takes_options_and_fields_in_any_order(
    tmp_path: Path, sae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--model", "tiny-gemma2", "--layer", "77", "--data-dir", str(tmp_path / "x")]
    assert main(["import", "--data.ctx_len", "64", str(sae), *options]) == 2
    assert "Layer 77 does not exist" in capsys.readouterr().err
    assert main(["import", str(sae), "--name", "x" * 300, *options]) == 2
    assert "--name: It has 300 characters; the limit is 200" in capsys.readouterr().err


def zipped(sae: Path) -> Path:
    """The folder of an SAE as a zip beside it."""
    folder = sae.parent
    return Path(shutil.make_archive(str(folder), "zip", folder.parent, folder.name))


@pytest.mark.parametrize("relative", [False, True])
def test_a_zip_is_imported_as_its_folder(
    client: TestClient, settings: Settings, sae: Path, relative: bool
) -> None:
    archive = zipped(sae)
    given = archive.relative_to(settings.data_dir) if relative else archive
    found = client.get("/api/imports/found", params={"path": str(given)})
    assert found.status_code == 200, found.text
    assert (found.json()["path"], found.json()["name"]) == (str(given), "their-sae")
    assert found.json()["format"] == "saelens"
    answer = post(client, given)
    assert answer.status_code == 201, answer.text
    folder = Path(answer.json()["config"]["sae"]["pretrained"])
    assert folder.is_relative_to(settings.data_dir / "imports")
    assert (folder / sae.name).read_bytes() == sae.read_bytes()
    assert answer.json()["name"] == "their-sae"
    body = {"config": {"sae": {"pretrained": str(given)}, "model": {"name": "tiny-gemma2"}}}
    run = client.post("/api/runs", json=body)
    assert run.json()["config"]["sae"]["pretrained"] == str(folder)


def test_what_was_unpacked_goes_with_the_last_run_that_imported_it(
    client: TestClient, settings: Settings, sae: Path
) -> None:
    archive = zipped(sae)
    runs = [post(client, path).json() for path in (archive, archive, sae.parent)]
    paths = [Path(run["config"]["sae"]["pretrained"]) for run in runs]
    assert paths[0] == paths[1] != paths[2]
    for run, is_left in zip(runs, (True, False, False), strict=True):
        client.post(f"/api/runs/{run['id']}/stop")
        wait_for_status(client, run["id"], *ENDED)
        assert client.delete(f"/api/runs/{run['id']}").status_code == 204
        assert paths[0].exists() is is_left
    assert archive.exists()
    assert paths[2].exists()
    assert not list(settings.data_dir.glob("imports/*"))
    assert Path(post(client, archive).json()["config"]["sae"]["pretrained"]).exists()


def delete_import_of(client: TestClient, database: Database, path: Path) -> None:
    """Add a finished run that imported the SAE at `path`, and delete it."""
    config = resolve_config("quick-test", {"name": "x", "sae": {"pretrained": str(path)}})
    with database.writing() as session:
        run_id = store.add_run(session, config=config, status="finished").id
    assert client.delete(f"/api/runs/{run_id}").status_code == 204


@pytest.mark.parametrize("name", ["layer_1", "gemma-scope/layer_1", "scope/layers/layer_1"])
def test_saes_that_the_user_put_beside_unpacked_ones_stay(
    client: TestClient, database: Database, settings: Settings, name: str
) -> None:
    path = write_sae(settings.data_dir / "imports" / name)
    other = write_sae(path.parent.with_name("layer_2"))
    for given in (path.parent, path):
        delete_import_of(client, database, given)
        assert path.exists()
        assert other.exists()


@pytest.mark.parametrize("inside", [".", "sae_weights.safetensors"])
def test_an_unpacked_folder_stays_while_a_run_uses_anything_in_it(
    client: TestClient, database: Database, settings: Settings, sae: Path, inside: str
) -> None:
    folder = unpacked(zipped(sae), settings.data_dir / "imports")
    link = settings.data_dir / "link"
    link.symlink_to(folder)
    config = resolve_config("tiny", {"name": "x", "sae": {"pretrained": str(link / inside)}})
    with database.writing() as session:
        other = store.add_run(session, config=config, status="finished").id
    delete_import_of(client, database, folder)
    assert folder.exists()
    assert client.delete(f"/api/runs/{other}").status_code == 204
    assert not folder.exists()


@pytest.mark.parametrize("command", [["import"], ["train", "--eval-only", "--sae.pretrained"]])
def test_the_command_line_imports_a_zip(
    tmp_path: Path, sae: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    place = ["--model.name", "tiny-gemma2", "--model.layer", "77"]
    options = [*place, "--data-dir", str(tmp_path / "x")]
    assert main([*command, str(zipped(sae)), *options]) == 2
    assert "Layer 77 does not exist" in capsys.readouterr().err
    [copy] = (tmp_path / "x" / "imports").rglob(sae.name)
    assert copy.read_bytes() == sae.read_bytes()


def test_a_zip_that_cannot_be_used_is_refused_in_one_sentence(
    client: TestClient, settings: Settings, tmp_path: Path, sae: Path
) -> None:
    broken = settings.data_dir / "broken.zip"
    broken.write_bytes(zipped(sae).read_bytes()[:-40])
    outside = shutil.copy(zipped(sae), tmp_path / "outside.zip")
    for path, words in ((broken, "cannot be unpacked"), (Path(outside), "is not in a folder")):
        for answer in (
            client.get("/api/imports/found", params={"path": str(path)}),
            post(client, path),
            client.post("/api/runs", json={"config": {"sae": {"pretrained": str(path)}}}),
        ):
            assert answer.status_code == 422
            assert words in answer.text
    assert not list(settings.data_dir.glob("imports/*"))


@pytest.mark.parametrize("name", ["their-sae", "their-sae/", "their-sae/sae_weights.safetensors"])
def test_a_path_may_be_relative_to_the_data_folder(
    client: TestClient, settings: Settings, sae: Path, name: str
) -> None:
    found = client.get("/api/imports/found", params={"path": name})
    assert (found.status_code, found.json()["path"]) == (200, name)
    answer = post(client, Path(name))
    assert answer.status_code == 201, answer.text
    assert answer.json()["config"]["sae"]["pretrained"] == str(settings.data_dir / name.rstrip("/"))


@pytest.mark.parametrize("name", ["absent", "absent/sae.zip"])
def test_a_relative_path_of_nothing_says_where_it_was_expected(
    client: TestClient, settings: Settings, name: str
) -> None:
    answer = client.get("/api/imports/found", params={"path": name})
    assert answer.status_code == 422
    assert f"There is no SAE at '{settings.data_dir / name}'" in answer.text
    answer = client.get("/api/imports/found", params={"path": "google/gemma-scope/layer_1"})
    assert "for the Hugging Face hub, write hub:google/gemma-scope/layer_1" in answer.text
    for path in ("../absent", "../../etc/passwd"):
        assert "is not in a folder" in client.get("/api/imports/found", params={"path": path}).text
