"""Whatever is in the files of a model's folder, it is used or refused in one sentence.

`TEXT_EXAMPLES=2000 pytest tests/sae_engine/model/test_any_files.py` tries more than usual.
"""

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sae_engine.errors import UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.preflight import check_config
from sae_engine.presets.resolve import resolve_config
from sae_engine.training.rehearsal import rehearse
from tests.damage import changed_json, changes, damaged, wounds

EXAMPLES = int(os.environ.get("TEXT_EXAMPLES", "40"))
few = settings(
    max_examples=max(2, EXAMPLES // 20),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
FILES = ["config.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture(scope="module")
def model(model_folders) -> Path:
    return model_folders["llama"]


def used_or_refused(model: Path, name: str, content: bytes) -> None:
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "model")
        shutil.copytree(model, folder, copy_function=os.link)
        (folder / name).unlink()
        (folder / name).write_bytes(content)
        config = resolve_config(None, {"model": {"name": str(folder), "layer": 1}})
        for use in (lambda: check_config(config), lambda: load(config.model)):
            try:
                use()
            except UserError as error:
                message = str(error)
                assert "\n" not in message
                assert str(folder) in message or "model." in message
                assert len(message) < 1_000


def load(config) -> None:
    loaded = LanguageModel.load(config, ctx_len=16)
    rehearse(loaded)


@pytest.mark.parametrize("name", FILES)
@few
@given(changes=changes)
def test_odd_values_in_a_models_files_are_used_or_refused(model: Path, name: str, changes: list):
    used_or_refused(model, name, changed_json((model / name).read_bytes(), changes))


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
@few
@given(wounds=wounds)
def test_a_damaged_file_of_a_model_is_used_or_refused(model: Path, name: str, wounds: list):
    used_or_refused(model, name, damaged((model / name).read_bytes(), wounds))


@pytest.mark.parametrize("name", [*FILES, "model.safetensors"])
@few
@given(content=st.binary(max_size=100))
def test_any_bytes_in_place_of_a_models_file_are_refused(model: Path, name: str, content: bytes):
    used_or_refused(model, name, content)


@pytest.mark.parametrize(
    "changed",
    [
        {"num_hidden_layers": 10**9},
        {"num_hidden_layers": 10**30},
        {"num_hidden_layers": 1e30},
        {"num_attention_heads": 2**31},
        {"num_local_experts": 10**6},
        {"vocab_size": 10**15},
    ],
)
def test_numbers_that_no_model_has_are_refused_before_anything_is_built(
    model: Path, tmp_path: Path, changed: dict
):
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | changed))
    config = resolve_config(None, {"model": {"name": str(folder), "layer": 1}})
    for use in (lambda: check_config(config), lambda: load(config.model)):
        with pytest.raises(UserError, match=r"(gives .* as|not hold a complete model)"):
            use()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", b'{"model_type": "llama", "hidden_size": []}'),
        ("config.json", b'{"model_type": {}}'),
        ("tokenizer.json", b"[]"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": [[]]}}'),
        ("tokenizer_config.json", b'{"tokenizer_class": 3}'),
        ("tokenizer_config.json", b'{"bos_token": {"content": []}}'),
    ],
)
def test_files_of_another_shape_are_used_or_refused(model: Path, name: str, content: bytes):
    used_or_refused(model, name, content)
