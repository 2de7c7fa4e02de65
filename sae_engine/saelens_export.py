"""A run's SAE as SAELens's own loader reads it: `SAE.load_from_disk(folder)` of sae-lens 6.

No torch here: both formats name and orient the tensors alike, and the decoder rows have unit norm.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import yaml

from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_folder
from sae_engine.schema.config import ModelConfig, RunConfig

HOOKS = {"resid_post": "hook_resid_post", "mlp_out": "hook_mlp_out", "attn_out": "hook_attn_out"}
"""TransformerLens's names of the sites."""
SAELENS_VERSION = "6.54.12"
"""Whose `cfg.json` is written."""


def export_saelens(folder: RunFolder, target: Path) -> None:
    """Write the run's newest SAE into the folder `target`.

    Raises `UserError` if the run has no SAE yet, or `target` holds something.
    """
    if not folder.sae.is_file() or not folder.sae_config.is_file():
        raise UserError(f"'{folder.path}' holds no sae.safetensors with its cfg.json to export.")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UserError(f"'{target}' is not empty; name a new folder for the export.")
    config = RunConfig.model_validate(yaml.safe_load(folder.config.read_text("utf-8")))
    published = json.loads(folder.sae_config.read_text("utf-8"))
    with published_folder(target) as made:
        shutil.copyfile(folder.sae, made / "sae_weights.safetensors")
        text = json.dumps(_saelens_config(config, published), indent=2)
        (made / "cfg.json").write_text(text + "\n", "utf-8")


def _saelens_config(config: RunConfig, published: dict[str, object]) -> dict[str, object]:
    shape = {name: published[name] for name in ("architecture", "d_in", "d_sae")}
    if "k" in published:
        shape |= {"k": published["k"], "rescale_acts_by_decoder_norm": False}
    return shape | {
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_name": published["model_name"],
            "hook_name": _hook_name(config.model),
            "hf_hook_name": published["hook_name"],
            "dataset_path": published["dataset"],
            "context_size": published["ctx_len"],
            "prepend_bos": True,
            "trained_with": "SAE Workbench",
        },
    }


def _hook_name(model: ModelConfig) -> str:
    return model.hook_point or f"blocks.{model.layer}.{HOOKS[model.site]}"
