"""Runs pushed to a hub over REST and from the shell, and imported again."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from starlette.testclient import TestClient

from backend import store
from backend.cli.main import main
from backend.errors import ForbiddenError
from backend.jobs.pushes import pushed_run, require_allowed
from backend.settings import Settings, load_settings
from backend.store.database import Database
from sae_engine.errors import DiskFullError, UserError
from sae_engine.files import RunFolder
from sae_engine.interop.load import load_pretrained
from sae_engine.interop.push import PushedRun, push_sae
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.published import publish_sae
from sae_engine.schema.config import RunConfig
from tests.backend.conftest import create, wait_for_status
from tests.backend.fake_engine import measured
from tests.sae_engine.hub_server import Hub, ask, serve
from tests.sae_engine.hub_uploads import WRITE_TOKEN
from tests.sae_engine.sae.test_autoencoders import random_sae

QUIET = """
import warnings
warnings.filterwarnings("ignore", "Use 'content=")  # of the hub's library, by its HTTP client
"""
PUSH = """
import contextlib, io, json, os
from backend.cli.main import main
answers = []
for token, *arguments in {calls!r}:
    os.environ["HF_TOKEN"] = token
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["push", *arguments, "--data-dir", {data_dir!r}])
    answers.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(answers))
"""
REST = """
import json
from starlette.testclient import TestClient
from backend.app import create_app
from backend.settings import Settings
from pathlib import Path
answers = []
with TestClient(create_app(Settings(data_dir=Path({data_dir!r}))), "http://127.0.0.1") as client:
    for path, body in {calls!r}:
        answer = client.post("/api" + path, json=body)
        answers.append([answer.status_code, answer.json()])
    found = client.get("/api/imports/found", params={{"path": {path!r}}})
    answers.append([found.status_code, found.json()])
print(json.dumps(answers))
"""
CONFIG = {
    "model": {"name": "tiny-gemma2", "layer": 1},
    "data": {
        "mixture": [
            {"dataset": "/srv/private/notes.txt", "weight": 2},
            {"dataset": "user/more", "weight": 1},
        ]
    },
}
FILES = (".gitattributes", "README.md", "cfg.json", "config.yaml", "saelens/cfg.json",
         "saelens/sae_weights.safetensors", "sae.safetensors")  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.fixture
def run(client: TestClient, settings: Settings, database: Database) -> str:
    """A finished run with an SAE of three latents and known figures."""
    run = create(client, "a run")
    wait_for_status(client, run.id, "finished")
    publish(settings.run_folder(run.id))
    with database.writing() as session:
        row = store.get_run(session, run.id)
        row.metrics = json.dumps({"eval_fvu": 0.125, "eval_l0": 4.0, "loss": 7.0})
        row.config = RunConfig.model_validate(CONFIG).model_dump(mode="json")
        row.tokens = 123_456
    return run.id


def publish(folder: RunFolder, step: int | None = None) -> SAE:
    sae = random_sae(5, ranks_by_norm=False).folded(1.0)
    publish_sae(sae, folder, RunConfig.model_validate(CONFIG), "model.layers.1", step=step)
    return sae


@pytest.mark.parametrize(("step", "figures"), [(None, 20), (20, 20), (12, 12), (1, 1)])
def test_the_figures_are_those_of_the_step_at_which_the_sae_was_saved(
    client: TestClient, settings: Settings, database: Database, step: int | None, figures: int
) -> None:
    run_id = create(client, "a run").id
    wait_for_status(client, run_id, "finished")
    publish(settings.run_folder(run_id), step)
    with database.reading() as session:
        row = store.get_run(session, run_id)
        pushed = pushed_run(settings, session, row)
        points = store.metrics(session, run_id)
        assert (row.step, points.step[-1]) == (20, 20)
    assert pushed.metrics.items() >= measured(figures).values.items()
    batch = pushed.config.train.batch_size_tokens
    assert pushed.tokens == (row.tokens if figures == 20 else figures * batch)


def pushes(hub: Hub, settings: Settings, home: Path, *calls: list[str]) -> list:
    """Exit code, output and errors of each push; a call is a token and arguments."""
    code = QUIET + PUSH.format(calls=calls, data_dir=str(settings.data_dir))
    return ask(code, hub, home, HF_HUB_DISABLE_XET="1")


def files_of(hub: Hub, name: str) -> dict[str, bytes]:
    [repository] = hub.repositories["models", name]
    return dict(repository.files)


def test_a_pushed_run_is_a_card_a_configuration_and_the_sae_in_two_formats(
    hub: Hub, settings: Settings, run: str, tmp_path: Path
) -> None:
    first, second = pushes(
        hub, settings, tmp_path / "home",
        [WRITE_TOKEN, "a run", "hub:me/saes"],
        [WRITE_TOKEN, "a run", "hub:me/saes/layer-1", "--public"],
    )  # fmt: skip
    assert first[:1] + second[:1] == [0, 0], (first, second)
    assert first[1].startswith(f"Pushed 6 files to hub:me/saes: {hub.endpoint}/me/saes/commit/")
    files = files_of(hub, "me/saes")
    folder = ["layer-1/" + name for name in FILES if name[0] != "."]
    assert sorted(files) == sorted([*FILES, *folder])
    assert hub.visibility == {"me/saes": "private"}  # made by the first push

    card = files["README.md"].decode()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "saelens"
    assert "| Held-out FVU | 0.125 |" in card
    assert "123,456 tokens of `notes.txt + user/more`" in card
    assert 'SAE.from_pretrained("me/saes", "saelens")' in card
    assert 'SAE.from_pretrained("me/saes", "layer-1/saelens")' in files[folder[0]].decode()
    for name, content in files.items():
        assert b"/srv/private" not in content, name
    for name, field in (("cfg.json", "dataset"), ("saelens/cfg.json", "dataset_path")):
        described = json.loads(files[name])
        assert (described.get("metadata") or described)[field] == "notes.txt + user/more"
    for place in ("", "layer-1/"):
        local = tmp_path / "copy" / place
        for name in FILES[1:]:
            (local / name).parent.mkdir(parents=True, exist_ok=True)
            (local / name).write_bytes(files[place + name])
        x = torch.randn(9, 6)
        expected = SAE.load(settings.run_folder(run).sae)(x)
        for copy in (local, local / "saelens"):
            again = load_pretrained(copy)
            assert torch.equal(again.sae(x), expected)
            assert again.described.place.settings == {"layer": 1, "site": "resid_post"}
            assert again.notes == []


def test_a_push_that_fails_leaves_nothing_behind_and_says_why(
    hub: Hub, settings: Settings, run: str, tmp_path: Path
) -> None:
    hub.refuses = {"large.git/info/lfs", "small/commit"}
    hub.add("models", "me/old", {"README.md": b"of a language model", "model.safetensors": b"x"})
    hub.add("models", "me/two", {"sae.safetensors": b"x"})
    hub.add("models", "me/two", {"cfg.json": b"{}"}, revision="v2")
    before = dict(hub.repositories)
    remedy = "set HF_TOKEN to a token that may write to"
    expected = [
        (WRITE_TOKEN, "hub:me/large", "refused a request about 'me/large': This step is refused."),
        (WRITE_TOKEN, "hub:me/small", "refused a request about 'me/small': This step is refused."),
        (WRITE_TOKEN, "hub:me/old", "has README.md of something else already; push into a folder"),
        (WRITE_TOKEN, "hub:me/two@v2", "has cfg.json of something else already"),
        (WRITE_TOKEN, "me/old", "write hub:OWNER/NAME/PATH"),
        ("", "hub:me/new", f"needs a token of the Hugging Face hub: {remedy} 'me/new'"),
        ("hf_read", "hub:me/new", f"refused the push: {remedy} 'me/new'"),
    ]
    calls = [[token, "a run", target] for token, target, _ in expected]
    answers = pushes(hub, settings, tmp_path / "home", *calls)
    for (code, out, error), (_, _, words) in zip(answers, expected, strict=True):
        assert (code, out) == (2, "")
        assert words in error
    assert hub.repositories == before
    assert not list(settings.data_dir.rglob(".push*"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_during_a_push_is_not_blamed_on_the_hub(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    folder = settings.run_folder("full")
    publish(folder)
    scratch = list[Path]()

    def copy(source: Path, target: Path) -> None:
        folder.remove_leftovers()  # as a run that resumes meanwhile does
        scratch.append(target.parent)
        assert target.parent.is_dir()
        raise OSError(number, os.strerror(number))

    monkeypatch.setenv("HF_TOKEN", WRITE_TOKEN)
    monkeypatch.setattr("sae_engine.interop.push.export_saelens", copy)
    run = PushedRun(folder, "full", RunConfig.model_validate(CONFIG), {}, 1)
    with pytest.raises(DiskFullError, match="full' is full"):
        push_sae(run, "hub:me/saes")
    assert scratch
    assert not scratch[0].exists()


def test_over_rest_a_run_is_pushed_and_found_on_the_hub_again(
    hub: Hub, settings: Settings, run: str, client: TestClient, tmp_path: Path
) -> None:
    calls = [
        (f"/runs/{run}/push", {"target": "hub:me/saes/a", "private": False}),
        (f"/runs/{run}/push", {"target": "me/saes"}),
        ("/runs/nothing/push", {"target": "hub:me/saes"}),
        ("/imports", {"path": "hub:me/saes/a"}),
    ]
    code = QUIET + REST.format(calls=calls, data_dir=str(settings.data_dir), path="hub:me/saes/a")
    environment = {
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": WRITE_TOKEN,
        "SAE_WORKBENCH_PUSH_TO": "me",
    }
    pushed, wrong, missing, imported, found = ask(code, hub, tmp_path / "home", **environment)
    assert pushed[0] == 201, pushed
    assert pushed[1]["files"][0] == "a/README.md"
    assert hub.visibility == {"me/saes": "public"}
    assert (wrong[0], missing[0]) == (422, 404)
    assert "write hub:OWNER/NAME/PATH" in wrong[1]["detail"]
    assert found[1]["format"] == "sae-workbench"
    assert (found[1]["model"], found[1]["layer"]) == ("tiny-gemma2", 1)
    assert imported[0] == 201, imported
    assert imported[1]["config"]["model"]["layer"] == 1


def test_only_a_run_that_has_ended_with_an_sae_is_pushed(
    client: TestClient, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = create(client, "quick")
    wait_for_status(client, finished.id, "finished")
    settings.run_folder(finished.id).sae.unlink(missing_ok=True)
    assert main(["push", finished.id, "hub:me/x", "--data-dir", str(settings.data_dir)]) == 2
    assert "has no SAE to push" in capsys.readouterr().err
    running = create(client, "wait")
    wait_for_status(client, running.id, "running")
    answer = client.post(f"/api/runs/{running.id}/push", json={"target": "hub:me/saes"})
    assert answer.status_code == 409
    assert "is still running; push it when it has ended" in answer.text


@pytest.mark.parametrize(
    ("allowed", "target", "is_allowed"),
    [
        ("", "hub:me/saes", False),
        ("me", "hub:me/saes/a", True),
        ("you, me/saes", "hub:me/saes@v2", True),
        ("you, me/saes", "hub:me/other", False),
        ("me", "hub:me2/saes", False),
        ("me/saes", "hub:me/saes2", False),
    ],
)
def test_over_rest_only_named_owners_and_repositories_are_pushed_to(
    settings: Settings, allowed: str, target: str, is_allowed: bool
) -> None:
    of_server = Settings(data_dir=settings.data_dir, push_to=allowed)  # pyright: ignore
    if is_allowed:
        require_allowed(of_server, target)
        return
    with pytest.raises(ForbiddenError, match="SAE_WORKBENCH_PUSH_TO"):
        require_allowed(of_server, target)


def test_by_default_nothing_is_pushed_over_rest(client: TestClient, run: str) -> None:
    answer = client.post(f"/api/runs/{run}/push", json={"target": "hub:me/saes"})
    assert answer.status_code == 403
    assert "does not push to 'me/saes'; add it or its owner to" in answer.text


@pytest.mark.parametrize("names", ["me/saes/a", "hub:me", "me you"])
def test_what_names_no_owner_is_refused_as_a_setting(names: str) -> None:
    with pytest.raises(UserError, match=r"SAE_WORKBENCH_PUSH_TO = .* is not an owner"):
        load_settings(push_to=names)
