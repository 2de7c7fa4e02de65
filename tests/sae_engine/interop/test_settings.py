"""Settings are honoured, refused or noted; hook names are turned into places."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from sae_engine.errors import UserError
from sae_engine.interop.files import MAX_SETTINGS
from sae_engine.interop.formats import describe
from sae_engine.interop.load import load_pretrained
from sae_engine.interop.places import Place, place_of, same_module
from tests.sae_engine.interop.test_load import (
    K,
    Parts,
    dictionary_learning,
    saelens,
    trainer,
)
from tests.sae_engine.interop.test_rules import sparsify


@pytest.fixture
def parts() -> Parts:
    return Parts()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"whiten": "zca"}, "unknown here and were ignored: whiten;"),
        ({"metadata": {"rotation": [1, 2]}}, "ignored: rotation;"),
        ({"activation_fn_kwargs": {"k": K, "absolute": True}}, "activation_fn_kwargs.absolute"),
        (
            {"model_from_pretrained_kwargs": {"revision": "step3000", "fold_ln": True}},
            "ignored: model_from_pretrained_kwargs.revision;",
        ),
        ({"metadata": {"prepend_bos": False}}, "without a BOS token"),
        ({"seqpos_slice": [5, -5]}, r"positions \[5, -5\]"),
        ({"metadata": {"seqpos_slice": 5, "model_name": ["x"], "hook_name": 7}}, "positions 5 of"),
        ({f"new_{i}": 1 for i in range(12)}, "new_5, …"),
    ],
)
def test_a_setting_that_is_not_honoured_is_noted(
    parts: Parts, tmp_path: Path, settings: dict, words: str
):
    folder = saelens(tmp_path, parts, {}, **{"architecture": "topk", "k": K} | settings)
    [note] = load_pretrained(folder).notes
    assert re.search(words, note)


@pytest.mark.parametrize(
    "settings",
    [
        {"metadata": None},
        {"metadata": {"seqpos_slice": [None], "prepend_bos": True, "model_class_name": "Hooked"}},
        {"activation_fn_kwargs": None, "l1_coefficient": 5, "new": None, "newer": False},
        {"model_from_pretrained_kwargs": {"center_writing_weights": False, "fold_ln": True}},
    ],
)
def test_settings_without_effect_on_a_trained_sae_pass_in_silence(
    parts: Parts, tmp_path: Path, settings: dict
):
    folder = saelens(tmp_path, parts, {}, **{"architecture": "topk", "k": K} | settings)
    assert load_pretrained(folder).notes == []


def test_unknown_settings_of_every_format_are_noted(parts: Parts, tmp_path: Path):
    saes = [
        sparsify(tmp_path / "a" / "layers.1", parts, rotate=True),
        dictionary_learning(tmp_path / "b", parts.linear, trainer("AutoEncoderTopK", rotate=True)),
    ]
    for folder in saes:
        assert ["ignored: rotate;" in note for note in load_pretrained(folder).notes] == [True]


@pytest.mark.parametrize("key", ["transcode", "skip_connection"])
def test_transcoders_of_sparsify_are_refused(parts: Parts, tmp_path: Path, key: str):
    with pytest.raises(UserError, match="transcoder"):
        load_pretrained(sparsify(tmp_path, parts, **{key: True}))


def test_a_scale_that_the_settings_deny_is_refused(parts: Parts, tmp_path: Path):
    scale = {"scaling_factor": 2 * parts.norms}
    settings = {"architecture": "standard", "finetuning_scaling_factor": False}
    with pytest.raises(UserError, match="remove one of them"):
        load_pretrained(saelens(tmp_path, parts, scale, **settings))


def test_sparsify_takes_the_model_from_the_runs_settings(parts: Parts, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({"model": "EleutherAI/pythia-160m"}))
    described = describe(sparsify(tmp_path / "layers.3.mlp", parts))
    assert described.model_name == "EleutherAI/pythia-160m"
    assert described.place.settings == {"hook_point": "layers.3.mlp", "hook_io": "output"}


@pytest.mark.parametrize(
    ("folder", "settings", "model_name", "place"),
    [
        (
            "gemma-scope-2-4b-pt/resid_post/layer_17_width_16k_l0_medium",
            {"hf_hook_point_in": "model.layers.17.output", "model_name": "gemma-v3-4b-pt"},
            "google/gemma-3-4b-pt",
            {"layer": 17, "site": "resid_post"},
        ),
        (
            "gemma-scope-2-270m-pt/attn_out/layer_3_width_16k_l0_small",
            {"hf_hook_point_in": "model.layers.3.self_attn.o_proj.input"},
            "google/gemma-3-270m",
            {"hook_point": "model.layers.3.self_attn.o_proj", "hook_io": "input"},
        ),
        (
            "gemma-scope-2-1b-it/mlp_out_all/layer_0_width_16k_l0_big",
            {},
            "google/gemma-3-1b-it",
            {"layer": 0, "site": "mlp_out"},
        ),
    ],
)
def test_the_second_gemma_scope_says_model_and_place(
    parts: Parts, tmp_path: Path, folder: str, settings: dict, model_name: str, place: dict
):
    path = tmp_path / folder
    path.mkdir(parents=True)
    save_file(parts.tensors | {"threshold": parts.threshold}, path / "params.safetensors")
    if settings:
        described = {"architecture": "jump_relu", "affine_connection": False, "l0": 60}
        (path / "config.json").write_text(json.dumps(described | settings))
    found = describe(path)
    assert (found.model_name, found.place.settings, found.notes) == (model_name, place, [])


@pytest.mark.parametrize(
    "settings",
    [
        {"hf_hook_point_in": "model.layers.1.mlp.input", "hf_hook_point_out": "model.layers.1.mlp"},
        {"affine_connection": True},
    ],
)
def test_a_transcoder_of_the_second_gemma_scope_is_refused(
    parts: Parts, tmp_path: Path, settings: dict
):
    save_file(parts.tensors | {"threshold": parts.threshold}, tmp_path / "params.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError, match="transcoder"):
        describe(tmp_path)


@pytest.mark.parametrize(
    ("hook_name", "settings"),
    [
        ("blocks.12.hook_resid_post", {"layer": 12, "site": "resid_post"}),
        ("blocks.12.hook_resid_pre", {"layer": 11, "site": "resid_post"}),
        ("blocks.0.hook_mlp_out", {"layer": 0, "site": "mlp_out"}),
        ("model.layers.7", {"layer": 7, "site": "resid_post"}),
        ("layers.10", {"layer": 10, "site": "resid_post"}),
        ("transformer.h.3.attn", {"hook_point": "transformer.h.3.attn", "hook_io": "output"}),
        ("model.layers.0.input", {"hook_point": "model.layers.0", "hook_io": "input"}),
        ("model.embed_tokens", {"hook_point": "model.embed_tokens", "hook_io": "output"}),
        ("blocks.2.hook_resid_mid", {}),
        ("blocks.2.hook_mlp_in", {}),
        ("blocks.2.ln2.hook_normalized", {}),
        ("blocks.5.attn.hook_z", {}),
        ("blocks.0.hook_resid_pre", {}),
        ("hook_embed", {}),
    ],
)
def test_a_hook_name_selects_a_place_or_has_a_remedy(hook_name: str, settings: dict):
    place = place_of(hook_name)
    assert place.settings == settings
    assert place.name == hook_name
    assert place.is_named == bool(settings)
    assert "model.hook_point" in place.remedy


def test_what_cannot_be_read_elsewhere_names_the_module():
    assert "'model.layers.5.self_attn.o_proj'" in place_of("blocks.5.attn.hook_z").remedy
    assert "'model.layers.0'" in place_of("blocks.0.hook_resid_pre").remedy


@pytest.mark.parametrize("hook_name", [None, "", 0])
def test_without_a_hook_name_nothing_is_required(hook_name: object):
    assert place_of(hook_name) == Place()


def test_one_module_has_many_prefixes():
    assert same_module("layers.3.mlp", "model.language_model.layers.3.mlp")
    assert not same_module("layers.3.mlp", "layers.3.post_feedforward_layernorm")
    assert not same_module("layers.3", "layers.13")


@pytest.mark.parametrize(("extra", "is_read"), [(0, True), (1, False), (2**20, False)])
def test_large_files_are_not_read_as_settings(
    parts: Parts, tmp_path: Path, extra: int, is_read: bool
):
    folder = sparsify(tmp_path / "layers.1", parts)
    file = folder / "cfg.json"
    file.write_text(file.read_text() + " " * (MAX_SETTINGS + extra - file.stat().st_size))
    if is_read:
        assert describe(folder).place.layer == 1
        return
    with pytest.raises(UserError, match=r"cfg\.json' cannot be read: it has [\d,]+ bytes"):
        describe(folder)


@pytest.mark.parametrize("layer", ["10001", "9" * 30])
@pytest.mark.parametrize(
    "place",
    [
        "gemma-scope-2b-pt-res/layer_{}/width_16k/params.npz",
        "gemma-scope-2b-pt-att/layer_{}/width_16k/params.npz",
        "gemma-scope-2-4b-pt/resid_post/layer_{}_width_16k/params.npz",
        "SAE-Res-Qwen3-1.7B-Base-W32K-L0_50/layer{}.sae.pt",
    ],
)
def test_a_path_with_an_impossible_layer_names_no_place(tmp_path: Path, place: str, layer: str):
    path = tmp_path / place.format(layer)
    path.parent.mkdir(parents=True)
    path.touch()
    if path.suffix == ".npz":
        np.savez(path, W_enc=np.zeros((2, 4)))
    assert describe(path).place.settings == {}


@pytest.mark.parametrize(
    ("text", "expected"),
    [(r"a\ud800", "a\ufffd"), (r"\udc00\ud800", "\ufffd\ufffd"), (r"\ud83d\ude00", "\U0001f600")],
)
def test_half_characters_in_settings_are_replaced(
    parts: Parts, tmp_path: Path, text: str, expected: str
):
    folder = sparsify(tmp_path / "layers.1", parts)
    (tmp_path / "config.json").write_text(f'{{"model": "{text}"}}')
    (folder / "cfg.json").write_text(f'{{"k": {K}, "{text}": 1}}')
    described = describe(folder)
    assert described.model_name == expected
    assert f"ignored: {expected};" in described.notes[0]
