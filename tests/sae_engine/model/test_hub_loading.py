"""Models of the hub, loaded through the hub's own code, and a run that uses only the hub.

Each case runs in its own process; see `hub_server.ask`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig
from tests.sae_engine.hub_server import Hub, ask, folder_files, serve
from tests.sae_engine.text.test_hub_dataset import LIMITED_TRY, three_files

IDS = torch.arange(5, 37).view(2, 16)

LOAD = """
import json, torch
from sae_engine.errors import UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig
try:
    model = LanguageModel.load(ModelConfig(name="some/model", layer=1, device="cpu"))
    ids = torch.arange(5, 37).view(2, 16)
    layers = len(model._model.layers)
    loss = model.full().cross_entropy(ids)[0]
    print(json.dumps([layers, model.activations(ids).tolist(), loss]))
except UserError as error:
    print(json.dumps(str(error)))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


@pytest.mark.parametrize("layout", ["one file", "shards"])
def test_a_model_of_the_hub_equals_its_folder(hub, tmp_path, model_folders, layout):
    folder = model_folders["gemma2"]
    files = folder_files(folder)
    if layout == "shards":
        AutoModelForCausalLM.from_pretrained(folder).save_pretrained(
            tmp_path / "shards", max_shard_size="60KB"
        )
        del files["model.safetensors"]
        files |= folder_files(tmp_path / "shards")
    hub.add("models", "some/model", files)
    hub.hang_ups[".safetensors"] = 1
    layers, activations, loss = ask(LOAD, hub, tmp_path / "home")
    assert hub.hang_ups[".safetensors"] == 0
    local = LanguageModel.load(ModelConfig(name=str(folder), layer=1, device="cpu"))
    assert layers == 2
    assert torch.equal(torch.tensor(activations), local.activations(IDS))
    assert loss == local.full().cross_entropy(IDS)[0]
    hub.repositories.clear()
    assert ask(LOAD, hub, tmp_path / "home", HF_HUB_OFFLINE="1") == [layers, activations, loss]


def test_a_gated_model_needs_the_token_and_says_so(hub, tmp_path, model_folders):
    hub.add("models", "some/model", folder_files(model_folders["gemma2"]), token="hf_right")
    for environment in ({}, {"HF_TOKEN": "hf_other"}):
        message = ask(LOAD, hub, tmp_path, **environment)
        assert message.startswith("The model 'some/model' is gated: accept its terms")
        assert "HF_TOKEN" in message
    layers, _, _ = ask(LOAD, hub, tmp_path, HF_TOKEN="hf_right")
    assert layers == 2


TRAIN = """
import json
from pathlib import Path
from typing import Any
from sae_engine.files import RunFolder
from sae_engine.presets import validate_config
from sae_engine.training.loop import train
config = validate_config({config!r})
records = list(train(config, RunFolder(Path({folder!r}))))
print(json.dumps([record.model_dump(mode="json") for record in records]))
"""


def test_a_model_and_a_dataset_of_the_hub_train_an_sae(hub, tmp_path, model_folders):
    hub.add("models", "some/model", folder_files(model_folders["gemma2"]))
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = 1
    config = {
        "model": {"name": "some/model", "layer": 1},
        "data": {"dataset": "some/texts", "ctx_len": 32, "heldout_tokens": 1000},
        "sae": {"d_sae": 64, "k": 4},
        "train": {"total_tokens": 4000, "batch_size_tokens": 256, "eval_tokens": 1000},
        "index": {"tokens": 1000, "snapshot_tokens": 1000},
    }
    code = TRAIN.format(config=config, folder=str(tmp_path / "run"))
    records = ask(code, hub, tmp_path / "home")
    assert records[-1]["kind"] == "end"
    assert records[-1]["reason"] == "finished"
    assert records[-1]["step"] > 10
    assert any(record["kind"] == "snapshot" and record["final"] for record in records)
    assert (tmp_path / "run" / "sae.safetensors").exists()
    assert json.loads((tmp_path / "run" / "cfg.json").read_text())["d_sae"] == 64


def test_a_model_that_does_not_exist_is_reported(hub, tmp_path):
    assert "There is no model 'some/model'" in ask(LOAD, hub, tmp_path)


def test_an_unreachable_hub_is_reported_within_seconds(tmp_path):
    nowhere = Hub()
    nowhere.endpoint = "http://127.0.0.1:9"
    message = ask(LOAD.replace("try:", LIMITED_TRY), nowhere, tmp_path)
    assert message.startswith("The model 'some/model' is not cached and the Hugging Face hub")
    assert "check the network" in message


CHECK = """
import json
from sae_engine.errors import ConfigError
from sae_engine.preflight import check_hub
from sae_engine.presets import resolve_config
given = json.loads({given!r})
try:
    check_hub([resolve_config("quick-test", given)] * 3)
    print(json.dumps(None))
except ConfigError as error:
    [problem] = error.problems
    print(json.dumps([problem.field, problem.message]))
"""


def checked(hub: Hub, home: Path, given: dict[str, dict[str, str]], **environment: str) -> Any:
    return ask(CHECK.format(given=json.dumps(given)), hub, home, **environment)


def test_what_the_hub_cannot_give_is_refused_before_the_run_is_queued(hub, tmp_path):
    hub.add("models", "some/model", {"config.json": b"{}"})
    hub.add("models", "some/gated", {"config.json": b"{}"}, token="hf_right")
    hub.add("datasets", "some/text", three_files())
    model = {"model": {"name": "some/model"}, "data": {"dataset": "some/text"}}
    assert checked(hub, tmp_path, model) is None
    assert hub.sent == ["config.json"]  # asked for once, and only its header
    gated = {"model": {"name": "some/gated"}}
    assert checked(hub, tmp_path, gated, HF_TOKEN="hf_right") is None
    field, message = checked(hub, tmp_path, gated)
    assert (field, "is gated" in message) == ("model.name", True)
    field, message = checked(hub, tmp_path, {"model": {"name": "some/typo"}})
    assert (field, "There is no model 'some/typo'" in message) == ("model.name", True)
    field, message = checked(hub, tmp_path, {"data": {"dataset": "some/typo"}})
    assert (field, "There is no dataset 'some/typo'" in message) == ("data.dataset", True)
    hub.endpoint = "http://127.0.0.1:9"  # nothing listens
    field, message = checked(hub, tmp_path, {"model": {"name": "some/model"}})
    assert (field, "the Hugging Face hub cannot be reached" in message) == ("model.name", True)
