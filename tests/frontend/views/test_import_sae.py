"""The page that imports an SAE: what its files say is shown and can be changed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.backend.routes.test_imports import write_sae
from tests.frontend.views.test_pages import Open, address, moved, shown
from tests.frontend.workbench import Workbench
from tests.sae_engine.interop.test_load import trainer


@pytest.fixture
def path(workbench: Workbench) -> str:
    folder = workbench.settings.data_dir / "their-sae"
    named = {"hook_name": "blocks.3.hook_mlp_out", "model_name": "tiny-gemma2"}
    return str(write_sae(folder, rotated=True, **named).parent)


def test_what_the_files_say_is_imported(open_page: Open, workbench: Workbench, path: str) -> None:
    app = open_page("import_sae")
    assert not app.button
    app.text_input(key="url:path").set_value(path).run()
    assert address(app, "path") == path
    text = shown(app)
    assert "Format: saelens, trained on blocks.3.hook_mlp_out" in text
    assert "ignored: rotated;" in text
    app.button(key="import").click().run()
    assert not app.exception
    [body] = workbench.posted("/api/imports")
    sent = {name: value for name, value in body.items() if value not in (None, [], "", {})}
    assert sent == {
        "path": path, "format": "saelens", "model": "tiny-gemma2", "name": "their-sae",
        "site": "mlp_out", "layer": 3,
    }  # fmt: skip
    assert address(moved(app), "id")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2", ""),
        ("-3", "at least 0 (got -3)"),
        ("x", "&#x27;x&#x27; is not a whole"),
    ],
)
def test_another_layer_than_that_of_the_files_is_pointed_out(
    open_page: Open, workbench: Workbench, path: str, text: str, said: str
) -> None:
    app = open_page("import_sae", path=path)
    assert "Its files say" not in shown(app)
    app.text_input(key=f"import:{path}:layer").set_value(text).run()
    assert "Its files say layer 3." in shown(app)
    app.button(key="import").click().run()
    assert said in shown(app)
    assert [body["layer"] for body in workbench.posted("/api/imports")] == ([] if said else [2])


def test_model_and_place_can_be_changed(open_page: Open, workbench: Workbench, path: str) -> None:
    app = open_page("import_sae", path=path)
    key = f"import:{path}:"
    app.selectbox(key=key + "site").set_value("Another module").run()
    app.text_input(key=key + "hook_point").set_value("model.layers.1.mlp").run()
    app.selectbox(key=key + "hook_io").set_value("input").run()
    app.text_input(key=key + "name").set_value("mine").run()
    app.button(key="import").click().run()
    [body] = workbench.posted("/api/imports")
    assert (body["hook_point"], body["hook_io"]) == ("model.layers.1.mlp", "input")
    assert (body["name"], body.get("layer"), body.get("site")) == ("mine", None, None)


def test_a_place_that_needs_a_module_asks_for_it(open_page: Open, workbench: Workbench) -> None:
    path = write_sae(workbench.settings.data_dir / "mid", hook_name="blocks.1.hook_resid_mid")
    app = open_page("import_sae", path=str(path))
    assert "blocks.1.hook_resid_mid: it is not resid_post" in shown(app)
    assert app.selectbox(key=f"import:{path}:site").value == "Another module"
    app.button(key="import").click().run()
    assert not app.exception
    assert "trained on blocks.1.hook_resid_mid" in shown(app)


@pytest.mark.parametrize("layer", [-1, 10**30, 10_001, True, "3", [3]])
def test_a_layer_that_cannot_be_one_is_left_to_the_user(
    open_page: Open, workbench: Workbench, layer: object
) -> None:
    folder = workbench.settings.data_dir / "theirs"
    folder.mkdir(parents=True)
    save_file({"encoder.weight": np.zeros((4, 2), np.float32)}, folder / "ae.safetensors")
    config = trainer("AutoEncoderTopK", layer=layer, lm_name="a\ud800b", **{"\udfff": 1})
    config["trainer"]["submodule_name"] = "resid_post"
    (folder / "config.json").write_text(json.dumps(config))
    app = open_page("import_sae", path=str(folder))
    assert not app.exception
    assert app.text_input(key=f"import:{folder}:layer").value == ""
    assert app.text_input(key=f"import:{folder}:model").value == "a\ufffdb"
    assert "ignored: \ufffd;" in shown(app)
    assert "resid_post: its files do not give its layer" in shown(app)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("hub:someone/sae", "the Hugging Face hub cannot be reached"),
        ("hub:someone", "write hub:OWNER/NAME/PATH"),
        ("/etc/passwd", "is not in a folder that this server may read"),
    ],
)
def test_what_cannot_be_read_is_explained(open_page: Open, path: str, words: str) -> None:
    app = open_page("import_sae", path=path)
    assert not app.exception
    assert words in shown(app)
    assert "Unprocessable" not in shown(app)
    assert not app.button


@pytest.mark.parametrize("text", ["texts/mine.txt", "python-stdlib", ""])
def test_the_text_of_the_evaluation_can_be_changed(
    open_page: Open, workbench: Workbench, path: str, text: str
) -> None:
    (workbench.settings.data_dir / "texts").mkdir(exist_ok=True)
    (workbench.settings.data_dir / "texts" / "mine.txt").write_text("one two three " * 99)
    app = open_page("import_sae", path=path)
    box = app.text_input(key=f"import:{path}:dataset")
    assert (box.label, box.value) == ("Text to evaluate on", "python-stdlib")
    box.set_value(text).run()
    app.button(key="import").click().run()
    assert not app.exception
    [body] = workbench.posted("/api/imports")
    chosen = {"data": {"dataset": text}} if text.startswith("texts/") else {}
    assert body.get("config", {}) == chosen


def test_an_uploaded_sae_is_the_one_to_import(open_page: Open) -> None:
    """The browser uploads it; the script receives the API's answer."""
    from streamlit.testing.v1 import AppTest

    def script() -> None:
        from frontend.views.import_sae import use_upload

        use_upload('{"path": "imports/a.zip", "bytes": 1}')
        use_upload("<html>not from the API")

    app = AppTest.from_function(script).run()
    assert not app.exception
    assert address(app, "path") == "imports/a.zip"
    assert "<code>POST /api/saes?name=…</code>" in shown(open_page("import_sae"))
