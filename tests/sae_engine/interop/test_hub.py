"""SAEs are read from the hub by name: the right files, nothing else, errors in one sentence.

Cases that share a process do so because it takes seconds to start; see `hub_server.ask`.
"""

from __future__ import annotations

import errno
import io
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import numpy as np
import pytest
import requests
import torch
from datasets.exceptions import DatasetGenerationError
from safetensors.torch import save

from sae_engine.errors import DiskFullError, UserError
from sae_engine.hub import HubName, UnreachableError, is_connection_error
from sae_engine.interop.files import MAX_SETTINGS, find_sae
from sae_engine.interop.hub_files import HubFolder
from sae_engine.interop.load import load_pretrained
from sae_engine.model.loading import vocab_size
from sae_engine.schema.config import DataConfig, ModelConfig
from sae_engine.text.hub_dataset import HubDataset
from sae_engine.text.notices import TextNotices
from tests.sae_engine.hub_server import Hub, ask, serve
from tests.sae_engine.interop.test_load import Parts

LOAD = """
import json, torch
from sae_engine.errors import UserError
from sae_engine.interop.formats import describe
from sae_engine.interop.load import load_pretrained
x = torch.linspace(-2, 2, 48).view(8, 6)
answers = []
for path in {paths!r}:
    try:
        found = {call}(path)
        described = getattr(found, "described", found)
        x_hat = found.sae(x).tolist() if hasattr(found, "sae") else None
        place = described.place.settings
        answers.append([described.format, described.model_name, place, x_hat])
    except UserError as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def load(*paths: str, call: str = "load_pretrained") -> str:
    return LOAD.format(paths=paths, call=call)


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve() as hub:
        yield hub


def npz(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return buffer.getvalue()


def pickled(tensors: dict[str, torch.Tensor]) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


def repositories() -> dict[str, dict[str, bytes]]:
    parts = Parts()
    jumprelu = parts.tensors | {"threshold": parts.threshold}
    small = {name.replace("W_", "w_"): tensor for name, tensor in jumprelu.items()}
    transposed = parts.tensors | {n: parts.tensors[n].T.contiguous() for n in ("W_enc", "W_dec")}
    first = "layer_12/width_16k/average_l0_82"
    second = "resid_post/layer_17_width_16k_l0_medium"
    settings = {
        "architecture": "topk",
        "k": 4,
        "metadata": {"hook_name": "blocks.8.hook_resid_pre"},
    }
    settings["metadata"]["model_name"] = "gpt2-small"
    hook = {"hf_hook_point_in": "model.layers.17.output", "architecture": "jump_relu"}
    return {
        "google/gemma-scope-2b-pt-res": {
            f"{first}/params.npz": npz(jumprelu),
            "layer_12/width_65k/average_l0_72/params.npz": b"another",
        },
        "google/gemma-scope-2-4b-pt": {
            f"{second}/params.safetensors": save(small),
            f"{second}/config.json": json.dumps(hook).encode(),
            "transcoder/layer_1/params.safetensors": b"never downloaded",
            "transcoder/layer_1/config.json": b'{"affine_connection": true}',
        },
        "someone/saes": {
            "blocks.8.hook_resid_pre/sae_weights.safetensors": save(parts.tensors),
            "blocks.8.hook_resid_pre/cfg.json": json.dumps(settings).encode(),
            "blocks.8.hook_resid_pre/sparsity.safetensors": b"not needed",
        },
        "Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4": {
            "layer3.sae.pt": pickled(transposed),
            "layer4.sae.pt": b"another",
        },
    }


PATHS = (
    "hub:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82",
    "hub:google/gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium",
    "hub:someone/saes/blocks.8.hook_resid_pre/sae_weights.safetensors",
    "hub:Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4/layer3.sae.pt",
)
FACTS = [
    ["gemma-scope", "google/gemma-2-2b", {"layer": 12, "site": "resid_post"}],
    ["gemma-scope", "google/gemma-3-4b-pt", {"layer": 17, "site": "resid_post"}],
    ["saelens", "gpt2", {"layer": 7, "site": "resid_post"}],
    ["qwen-scope", "Qwen/Qwen3-1.7B-Base", {"layer": 3, "site": "resid_post"}],
]


def test_saes_of_the_hub_equal_those_of_their_folders(hub: Hub, tmp_path: Path):
    for name, files in repositories().items():
        hub.add("models", name, files)
        for path, content in files.items():
            local = tmp_path / name / path
            local.parent.mkdir(parents=True, exist_ok=True)
            local.write_bytes(content)
    described = ask(load(*PATHS, call="describe"), hub, tmp_path / "home")
    assert [answer[:3] for answer in described] == FACTS
    settings = [path for path in hub.sent if not path.endswith(".json")]
    assert settings == []  # nothing but settings is downloaded to describe an SAE

    answers = ask(load(*PATHS), hub, tmp_path / "home")
    assert [answer[:3] for answer in answers] == FACTS
    x = torch.linspace(-2, 2, 48).view(8, 6)
    for path, answer in zip(PATHS, answers, strict=True):
        sae = load_pretrained(tmp_path / path.removeprefix("hub:")).sae
        torch.testing.assert_close(torch.tensor(answer[3]), sae(x))
    assert sorted(set(hub.sent)) == sorted(
        [
            "layer_12/width_16k/average_l0_82/params.npz",
            "resid_post/layer_17_width_16k_l0_medium/params.safetensors",
            "resid_post/layer_17_width_16k_l0_medium/config.json",
            "blocks.8.hook_resid_pre/sae_weights.safetensors",
            "blocks.8.hook_resid_pre/cfg.json",
            "layer3.sae.pt",
        ]
    )
    hub.repositories.clear()
    hub.endpoint = "http://127.0.0.1:9"  # unreachable: what was downloaded is used again
    assert ask(load(*PATHS), hub, tmp_path / "home") == answers


def test_what_cannot_be_read_from_the_hub_has_one_sentence(hub: Hub, tmp_path: Path):
    for name, files in repositories().items():
        hub.add("models", name, files)
    hub.add("models", "someone/gated", {"params.npz": b"secret"}, token="hf_right")
    large = {"sae_weights.safetensors": b"", "cfg.json": b" " * (MAX_SETTINGS + 1)}
    hub.add("models", "someone/large", large)
    hub.hang_ups, downloads = {"cfg.json": 9}, list[str]()
    hub.on_failure = lambda: downloads.append("cfg.json")
    expected = {
        "hub:nobody/nothing": "There is no repository 'nobody/nothing' on the Hugging Face hub",
        "hub:someone/saes@v9/x": "'someone/saes' has no such revision",
        "hub:someone/saes/blocks.9": "There is no file or folder 'hub:someone/saes/blocks.9'",
        "hub:google/gemma-scope-2b-pt-res/layer_12": "one of its folders, width_16k, width_65k.",
        "hub:Qwen/SAE-Res-Qwen3-1.7B-Base-W32K-L0_4": "name one of its files, layer3.sae.pt",
        "hub:google/gemma-scope-2-4b-pt/transcoder/layer_1": "is a transcoder",
        "hub:someone/gated": "The repository 'someone/gated' is gated: accept its terms",
        "hub:someone/large": "cfg.json' cannot be read: it has 1,048,577 bytes",
        "hub:noslash": "does not name an SAE on the hub; write hub:OWNER/NAME/PATH",
    }
    answers = ask(load(*expected), hub, tmp_path / "home")
    for sentence, answer in zip(expected.values(), answers, strict=True):
        assert sentence in answer
        assert "\n" not in answer
    assert "transcoder/layer_1/params.safetensors" not in hub.sent
    assert downloads == []  # its size is asked for first
    nowhere = Hub()
    nowhere.endpoint = "http://127.0.0.1:9"
    [answer] = ask(load(PATHS[0]), nowhere, tmp_path / "other")
    assert "is not cached and the Hugging Face hub cannot be reached" in answer


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:me/x", ("me/x", None, "")),
        ("hub:me/x/", ("me/x", None, "")),
        ("hub:me/x/a/b.pt", ("me/x", None, "a/b.pt")),
        ("hub:me/x.y@v1.0/a", ("me/x.y", "v1.0", "a")),
    ],
)
def test_a_name_on_the_hub_has_a_repository_a_revision_and_a_path(text: str, parts: tuple):
    name = HubName.parse(text)
    assert tuple(name) == parts
    assert HubName.parse(str(name)) == name


@pytest.mark.parametrize("text", ["hub:", "hub:me", "hub:me/x/../y", "hub:a b/c", "me/x"])
def test_other_texts_are_no_names_on_the_hub(text: str):
    with pytest.raises(UserError, match="write hub:OWNER/NAME/PATH"):
        HubName.parse(text)


def response(status: int) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://127.0.0.1")
    return httpx.HTTPStatusError("no", request=request, response=httpx.Response(status))


@pytest.mark.parametrize(
    ("error", "is_unreachable"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(-2, "Name or service not known"), True),
        (httpx.ConnectError("no route"), True),
        (requests.exceptions.ReadTimeout(), True),
        (requests.exceptions.ChunkedEncodingError(), True),
        (response(503), True),
        (response(404), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (FileNotFoundError(), False),
        (ValueError(), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_only_errors_of_the_network_make_a_hub_unreachable(error: Exception, is_unreachable: bool):
    assert is_connection_error(error) == is_unreachable


FULL = OSError(errno.ENOSPC, "No space left on device")


def full() -> Iterator[Callable[[], object]]:
    """What downloads: files of an SAE, of a model, and of a dataset."""
    files = ["cfg.json", "sae_weights.safetensors"]
    yield lambda: HubFolder(HubName.parse("hub:me/x"), files).fetch("cfg.json")
    yield lambda: find_sae("hub:me/x").settings("cfg.json")
    yield lambda: vocab_size(ModelConfig(name="me/x"))
    data = DataConfig(dataset="me/x", streaming=False)
    yield lambda: next(HubDataset(data, TextNotices()).documents("train", 0))


@pytest.mark.parametrize("download", list(full()), ids=["file", "settings", "model", "dataset"])
@pytest.mark.parametrize("is_wrapped", [False, True])
def test_a_full_disk_is_not_an_unreachable_hub(
    monkeypatch: pytest.MonkeyPatch, download: Callable[[], object], is_wrapped: bool
):
    def fail(*_: object, **__: object) -> None:
        if is_wrapped:
            raise DatasetGenerationError("It failed.") from FULL
        raise FULL

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", fail)
    monkeypatch.setattr("datasets.load_dataset", fail)
    monkeypatch.setattr("sae_engine.model.loading._config_and_tokenizer", fail)
    monkeypatch.setattr(
        "sae_engine.interop.hub_files.list_files",
        lambda _: ["cfg.json", "sae_weights.safetensors"],
    )
    monkeypatch.setattr(HubDataset, "_ask_hub", lambda _: None)
    with pytest.raises(DiskFullError, match="is full"):
        download()


def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/cache/blobs")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(UserError, match=r"used: .*Permission denied: '/cache/blobs'") as e:
        HubFolder(HubName.parse("hub:me/x"), ["cfg.json"]).fetch("cfg.json")
    assert not isinstance(e.value, UnreachableError)
