"""Our own SAE files, loaded and exported."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from sae_engine.errors import UserError
from sae_engine.files import RunFolder
from sae_engine.interop.export import export_saelens
from sae_engine.interop.load import load_pretrained
from sae_engine.presets import resolve_config
from sae_engine.sae.autoencoders import SAE
from sae_engine.sae.published import publish_sae, write_sae_config
from tests.sae_engine.sae.test_autoencoders import random_jumprelu, random_sae

KINDS = {
    "topk": random_sae,
    "jumprelu": random_jumprelu,
    "by pre-activation": partial(random_sae, ranks_by_norm=False),
}


@pytest.mark.parametrize("kind", KINDS)
def test_our_own_file_is_loaded_bit_for_bit(tmp_path: Path, kind: str):
    sae = KINDS[kind](1).folded(2.0)
    folder = published(tmp_path, sae)
    for path in (folder.path, folder.sae):
        got = load_pretrained(path)
        described = got.described
        assert (described.title, got.notes, described.model_name) == (
            "SAE Workbench", [], "some/model"
        )  # fmt: skip
        assert described.place[:2] == (2, "resid_post")
        for name, tensor in sae.state_dict().items():
            assert torch.equal(got.sae.state_dict()[name], tensor), name
        x = torch.randn(30, 6)
        assert torch.equal(got.sae(x), sae(x))


@pytest.mark.parametrize("kind", KINDS)
def test_an_export_describes_the_sae_in_saelens_terms(tmp_path: Path, kind: str):
    sae = KINDS[kind](1).folded(2.0)
    folder = published(tmp_path / "run", sae)
    model = {"name": "some/model", "layer": 2, "site": "attn_out"}
    config = resolve_config("tiny", {"model": model})
    folder.config.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    export_saelens(folder, tmp_path / "export")

    described = json.loads((tmp_path / "export/cfg.json").read_text())
    assert described["architecture"] == sae.architecture
    assert described["apply_b_dec_to_input"] is True
    assert described.get("k") == sae.k
    assert described["metadata"]["hook_name"] == "blocks.2.hook_attn_out"
    tensors = load_file(tmp_path / "export/sae_weights.safetensors")
    pre = (torch.ones(1, 6) - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"]
    torch.testing.assert_close(pre, sae.pre_activations(torch.ones(1, 6)))
    again = load_pretrained(tmp_path / "export")
    assert (again.described.title, *again.described.place[:2]) == ("SAELens", 2, "attn_out")
    x = torch.randn(30, 6)
    torch.testing.assert_close(again.sae(x), sae(x), rtol=1e-4, atol=1e-4)
    with pytest.raises(UserError, match="already exists"):
        export_saelens(folder, tmp_path / "export")


@pytest.mark.parametrize(
    ("model", "hook_name"),
    [
        ({"layer": 3}, "blocks.3.hook_resid_post"),
        ({"layer": 3, "site": "mlp_out"}, "blocks.3.hook_mlp_out"),
        ({"hook_point": "model.layers.15"}, "blocks.15.hook_resid_post"),
        ({"hook_point": "model.layers.15", "hook_io": "input"}, "blocks.15.hook_resid_pre"),
        ({"hook_point": "model.layers.2.self_attn.o_proj"}, "model.layers.2"),  # as in cfg.json
        ({"hook_point": "transformer.h.4"}, "blocks.4.hook_resid_post"),
        ({"hook_point": "model.layers.5.mlp.experts.3"}, "model.layers.2"),
        ({"hook_point": "model.vision_tower.encoder.layers.3"}, "model.layers.2"),
        (None, "model.layers.2"),
    ],
)
def test_an_export_has_the_transformerlens_name_of_the_hook_point(
    tmp_path: Path, model: dict | None, hook_name: str
):
    folder = published(tmp_path / "run", random_sae(1).folded(1.0))
    if model is not None:
        config = resolve_config("tiny", {"model": model})
        folder.config.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    export_saelens(folder, tmp_path / "export")
    described = json.loads((tmp_path / "export/cfg.json").read_text())
    assert described["metadata"]["hook_name"] == hook_name


def test_an_export_says_whether_rows_started_with_bos(tmp_path: Path):
    for prepends_bos in (True, False):
        folder = RunFolder(tmp_path / str(prepends_bos))
        folder.path.mkdir()
        config = resolve_config("tiny", {})
        publish_sae(random_sae(1).folded(1.0), folder, config, "m", prepends_bos=prepends_bos)
        target = folder.path / "export"
        export_saelens(folder, target)
        metadata = json.loads((target / "cfg.json").read_text())["metadata"]
        assert metadata["prepend_bos"] is prepends_bos


def published(path: Path, sae: SAE) -> RunFolder:
    folder = RunFolder(path)
    path.mkdir(parents=True, exist_ok=True)
    sae.save(folder.sae)
    described = {"model_name": "some/model", "hook_name": "model.layers.2", "dataset": "text"}
    write_sae_config(folder.sae_config, sae, ctx_len=64, **described)
    return folder
