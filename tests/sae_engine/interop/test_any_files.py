"""Whatever is in the files of an SAE, it is read or refused in one sentence.

`TEXT_EXAMPLES=2000 pytest tests/sae_engine/interop/test_any_files.py` tries more than usual.
"""

import io
import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from sae_engine.errors import UserError
from sae_engine.interop.formats import describe
from sae_engine.interop.load import load_pretrained
from tests.damage import changed_json, changes, damaged, wounds
from tests.sae_engine.interop.test_load import K, Parts

EXAMPLES = int(os.environ.get("TEXT_EXAMPLES", "40"))
many = settings(
    max_examples=max(2, EXAMPLES // 2), deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
few = settings(many, max_examples=max(1, EXAMPLES // 40))
"""For files that are read in another process."""


def as_json(tree: object) -> bytes:
    return json.dumps(tree).encode()


def as_npz(parts: Parts) -> bytes:
    file = io.BytesIO()
    tensors = {**parts.tensors, "threshold": parts.threshold}
    np.savez(file, **{name: tensor.numpy() for name, tensor in tensors.items()})
    return file.getvalue()


def as_pickle(tensors: dict[str, torch.Tensor]) -> bytes:
    file = io.BytesIO()
    torch.save(tensors, file)
    return file.getvalue()


PARTS = Parts()
SAELENS = {
    "architecture": "topk", "k": K, "d_in": 6, "d_sae": 20, "dtype": "float32",
    "apply_b_dec_to_input": True, "normalize_activations": "none", "reshape_activations": "none",
    "metadata": {"model_name": "gpt2", "hook_name": "blocks.1.hook_resid_post",
                 "model_from_pretrained_kwargs": {"dtype": "float32"}},
}  # fmt: skip
DICTIONARY = {
    "trainer": {"dict_class": "AutoEncoderTopK", "k": K, "layer": 1, "lm_name": "gpt2",
                "submodule_name": "resid_post_layer_1"},
    "buffer": {"io": "out", "ctx_len": 32},
}  # fmt: skip
FOLDERS: dict[str, dict[str, bytes]] = {
    "saelens": {"sae_weights.safetensors": save(PARTS.tensors), "cfg.json": as_json(SAELENS)},
    "saelens jumprelu": {
        "sae_weights.safetensors": save(PARTS.tensors | {"threshold": PARTS.threshold}),
        "cfg.json": as_json(SAELENS | {"architecture": "jumprelu"}),
    },
    "sparsify": {
        "sae.safetensors": save(
            {
                "encoder.weight": PARTS.W_enc.T.contiguous(),
                "encoder.bias": PARTS.b_enc,
                "W_dec": PARTS.W_dec,
                "b_dec": PARTS.b_dec,
            }
        ),
        "cfg.json": as_json({"activation": "topk", "k": K, "num_latents": 20, "d_in": 6}),
    },
    "gemma scope": {"params.npz": as_npz(PARTS)},
    "dictionary learning": {
        "ae.safetensors": save(PARTS.linear | {"threshold": torch.tensor(0.1)}),
        "config.json": as_json(DICTIONARY),
    },
}
PICKLED = {"ae.pt": as_pickle(PARTS.linear), "config.json": as_json(DICTIONARY)}
JSON = [(kind, name) for kind, files in FOLDERS.items() for name in files if name.endswith("json")]
TENSORS = [
    (kind, name) for kind, files in FOLDERS.items() for name in files if not name.endswith("json")
]


def read_or_refused(files: dict[str, bytes], name: str, content: bytes) -> bool:
    """Whether an SAE with other `content` in the file `name` is read."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "layers.3")
        folder.mkdir()
        for each, data in (files | {name: content}).items():
            (folder / each).write_bytes(data)
        for use in (lambda: describe(folder), lambda: load_pretrained(folder)):
            try:
                use()
            except UserError as error:
                message = str(error)
                assert "\n" not in message
                assert str(folder) in message
                assert len(message) < 1_000
                return False
    return True


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_undamaged_folders_are_read(kind: str):
    name, content = next(iter(FOLDERS[kind].items()))
    assert read_or_refused(FOLDERS[kind], name, content)


@pytest.mark.parametrize(("kind", "name"), JSON)
@many
@given(changes=changes)
def test_odd_settings_are_read_or_refused_in_one_sentence(kind: str, name: str, changes: list):
    read_or_refused(FOLDERS[kind], name, changed_json(FOLDERS[kind][name], changes))


@pytest.mark.parametrize(("kind", "name"), [*JSON, *TENSORS])
@many
@given(wounds=wounds)
def test_a_damaged_file_is_read_or_refused_in_one_sentence(kind: str, name: str, wounds: list):
    read_or_refused(FOLDERS[kind], name, damaged(FOLDERS[kind][name], wounds))


@pytest.mark.parametrize(("kind", "name"), [*JSON, *TENSORS])
@many
@given(content=st.binary(max_size=100))
def test_any_bytes_are_refused_in_one_sentence(kind: str, name: str, content: bytes):
    read_or_refused(FOLDERS[kind], name, content)


tensors = st.builds(
    lambda shape, dtype, value: torch.full(shape, value).to(getattr(torch, dtype)),
    st.lists(st.integers(0, 21), max_size=3),
    st.sampled_from(["float32", "float16", "bfloat16", "int64", "bool", "complex64", "uint8"]),
    st.sampled_from([0.0, 1.0, -1.0, float("nan"), float("inf"), 1e38]),
)


@pytest.mark.parametrize(("kind", "name"), [t for t in TENSORS if not t[1].endswith("npz")])
@many
@given(data=st.data())
def test_odd_tensors_are_read_or_refused_in_one_sentence(kind: str, name: str, data):
    from safetensors.torch import load

    found = load(FOLDERS[kind][name])
    changed = data.draw(st.sampled_from(sorted(found)))
    read_or_refused(FOLDERS[kind], name, save(found | {changed: data.draw(tensors)}))


@few
@given(wounds=wounds)
def test_a_damaged_pickle_is_read_or_refused_in_one_sentence(wounds: list):
    read_or_refused(PICKLED, "ae.pt", damaged(PICKLED["ae.pt"], wounds))
