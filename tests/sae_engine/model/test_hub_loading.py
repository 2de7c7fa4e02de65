"""Models and datasets of the hub, through the hub's and the datasets library's own code.

The hub is a small one on the loopback. Its address and its cache's place are read when its library
is imported, so each case is a process of its own.
"""

import io
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import torch
from transformers import AutoModelForCausalLM

from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import DataConfig, ModelConfig
from sae_engine.text.sources import documents
from tests.sae_engine.hub_server import Hub, ask, folder_files, serve

TEXTS = [f"Document {n} of the hub. " + f"It says {n * n} again. " * 30 for n in range(90)]
IDS = torch.arange(5, 37).view(2, 16)

READ = """
import json, time
from sae_engine.errors import UserError
from sae_engine.schema.config import DataConfig
from sae_engine.text.sources import documents
time.sleep = lambda seconds: None  # between tries
config = DataConfig.model_validate({config!r})
try:
    print(json.dumps([list(documents(config, split, {start})) for split in ("train", "heldout")]))
except UserError as error:
    print(json.dumps(str(error)))
"""
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


def table(texts: list[str], column: str = "text") -> bytes:
    buffer = io.BytesIO()
    rows = pa.table({"id": list(range(len(texts))), column: pa.array(texts, pa.string())})
    parquet.write_table(rows, buffer, row_group_size=10)
    return buffer.getvalue()


def three_files(texts: list[str] = TEXTS, column: str = "text") -> dict[str, bytes]:
    third = len(texts) // 3
    return {
        f"data/train-0000{n}-of-00003.parquet": table(texts[n * third : (n + 1) * third], column)
        for n in range(3)
    }


def read(hub: Hub, home: Path, start: int = 0, **config: object) -> list[list[list]]:
    code = READ.format(config={"dataset": "some/texts", **config}, start=start)
    return ask(code, hub, home)


def expected(folder: Path, start: int = 0) -> list[list[list]]:
    """What the same documents give when they are read from a local file."""
    path = folder / "local.parquet"
    path.write_bytes(table(TEXTS))
    config = DataConfig(dataset=str(path))
    return [[list(d) for d in documents(config, split, start)] for split in ("train", "heldout")]


@pytest.mark.parametrize("streaming", [True, False])
@pytest.mark.parametrize("start", [0, 47])
def test_documents_come_in_order_from_any_of_them_on(hub, tmp_path, streaming, start):
    hub.add("datasets", "some/texts", three_files())
    found = read(hub, tmp_path / "home", start, streaming=streaming)
    assert found == expected(tmp_path, start)
    assert len(found[0]) > 20
    assert found[1]


def test_a_number_of_documents_ends_the_reading_early(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    train, heldout = read(hub, tmp_path / "home", num_samples=25)
    assert sorted(n for n, _ in train + heldout) == list(range(25))
    assert "data/train-00002-of-00003.parquet" not in hub.sent


def test_a_subset_is_read_alone(hub, tmp_path):
    parts = [f"- {{config_name: {name}, data_files: {name}/*}}" for name in ("one", "two")]
    card = "\n".join(["---", "configs:", *parts, "---", ""])
    files = {
        "README.md": card.encode(),
        "one/train.parquet": table(["not this"] * 9),
        "two/train.parquet": table(TEXTS),
    }
    hub.add("datasets", "some/texts", files)
    assert read(hub, tmp_path / "home", subset="two") == expected(tmp_path)
    message = read(hub, tmp_path / "home", subset="three")
    assert "could not be opened" in message
    assert "one" in message
    assert "two" in message


@pytest.mark.parametrize("times", [1, 40], ids=["once", "longer than the library tries"])
def test_a_connection_that_breaks_in_mid_stream_changes_no_document(hub, tmp_path, times):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = times
    assert read(hub, tmp_path / "home") == expected(tmp_path)
    assert hub.hang_ups["train-00001-of-00003.parquet"] == 0


def test_a_connection_that_breaks_in_mid_download_changes_no_document(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = 1
    assert read(hub, tmp_path / "home", streaming=False) == expected(tmp_path)
    assert hub.hang_ups["train-00001-of-00003.parquet"] == 0


def test_a_connection_that_keeps_breaking_is_given_up_at_a_named_document(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files())
    hub.hang_ups["train-00001-of-00003.parquet"] = 10**6
    message = read(hub, tmp_path / "home")
    assert "'some/texts' stopped answering at document 30 and did not come back" in message


@pytest.mark.parametrize("streaming", [True, False])
def test_a_column_in_the_wrong_case_is_said_with_the_columns_there_are(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", three_files(column="Text"))
    message = read(hub, tmp_path, streaming=streaming)
    assert message == (
        "data.text_column: There is no column 'text' in 'some/texts'; its columns are: id, Text."
    )


@pytest.mark.parametrize("streaming", [True, False])
def test_a_split_that_is_not_there_is_said(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", three_files())
    message = read(hub, tmp_path, split="dev", streaming=streaming)
    assert "'some/texts' could not be opened" in message
    assert "dev" in message


def test_a_dataset_without_data_files_is_said(hub, tmp_path):
    hub.add("datasets", "some/texts", {"README.md": b"Nothing yet."})
    message = read(hub, tmp_path)
    assert "'some/texts' could not be opened" in message
    assert "doesn't contain any data files" in message


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_without_rows_is_said(hub, tmp_path, streaming):
    hub.add("datasets", "some/texts", {"data/train.parquet": table([])})
    message = read(hub, tmp_path, streaming=streaming)
    assert "'some/texts' c" in message  # cannot be read at document 0, or could not be opened


def test_a_gated_dataset_is_refused_with_the_remedy_and_read_with_the_token(hub, tmp_path):
    hub.add("datasets", "some/texts", three_files(), token="hf_right")
    code = READ.format(config={"dataset": "some/texts"}, start=0)
    for environment in ({}, {"HF_TOKEN": "hf_other"}):
        message = ask(code, hub, tmp_path / "home", **environment)
        assert message.startswith("'some/texts' is gated: accept its terms")
        assert "HF_TOKEN" in message
    found = ask(code, hub, tmp_path / "home", HF_TOKEN="hf_right")
    assert found == expected(tmp_path)


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_that_is_a_script_is_read_from_its_conversion(hub, tmp_path, streaming):
    converted = {"plain_text/train/0000.parquet": table(TEXTS[:50])}
    converted["plain_text/train/0001.parquet"] = table(TEXTS[50:])
    hub.add("datasets", "some/texts", {"texts.py": b"raise SystemExit('this must not run')"})
    hub.add("datasets", "some/texts", converted, revision="refs/convert/parquet")
    assert read(hub, tmp_path / "home", streaming=streaming) == expected(tmp_path)


def test_a_script_without_a_conversion_or_with_several_subsets_says_what_to_do(hub, tmp_path):
    hub.add("datasets", "some/texts", {"texts.py": b""})
    assert "no conversion of it to Parquet; use another dataset" in read(hub, tmp_path)
    converted = {f"{name}/train/0000.parquet": table(TEXTS) for name in ("one", "two")}
    hub.add("datasets", "some/texts", converted, revision="refs/convert/parquet")
    assert "has these: one, two; name one of them" in read(hub, tmp_path)
    assert "has these: one, two" in read(hub, tmp_path, subset="three")
    assert read(hub, tmp_path / "home", subset="two") == expected(tmp_path)


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


def test_a_gated_model_is_refused_with_the_remedy_and_loaded_with_the_token(
    hub, tmp_path, model_folders
):
    hub.add("models", "some/model", folder_files(model_folders["gemma2"]), token="hf_right")
    for environment in ({}, {"HF_TOKEN": "hf_other"}):
        message = ask(LOAD, hub, tmp_path, **environment)
        assert message.startswith("'some/model' is gated: accept its license")
        assert "HF_TOKEN" in message
    layers, _, _ = ask(LOAD, hub, tmp_path, HF_TOKEN="hf_right")
    assert layers == 2


TRAIN = """
import json
from pathlib import Path
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
