"""Writes an SAE in SAELens's format. No torch, so the web process can export.

Both formats have the same names and shapes of tensors, so the file is copied.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from sae_engine.errors import UserError
from sae_engine.files import RunFolder, published_folder, read_json_object
from sae_engine.interop.places import transformerlens_hook
from sae_engine.schema.config import ModelConfig

SAELENS_VERSION = "6.54.12"
"""Version of SAELens whose `cfg.json` is written."""


def export_saelens(folder: RunFolder, target: Path) -> None:
    """Write the run's newest SAE into the new folder `target`, for `SAE.load_from_disk` of SAELens
    6. Latents and reconstructions are the same there.

    Raises `UserError` if there is no SAE yet or `target` exists.
    """
    if target.exists():
        raise UserError(f"'{target}' already exists; name a new folder.")
    if not folder.sae.is_file() or not folder.sae_config.is_file():
        raise UserError(f"'{folder.path}' has no sae.safetensors with a cfg.json to export.")
    described = json.loads(folder.sae_config.read_text("utf-8"))
    hook_name = _configured_hook(folder) or described["hook_name"] + _side(described)
    config = _saelens_config(described, hook_name)
    with published_folder(target) as made:
        shutil.copyfile(folder.sae, made / "sae_weights.safetensors")
        (made / "cfg.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def published_step(folder: RunFolder) -> int | None:
    """The step of a run's newest SAE; None if it was not trained here, or is not there."""
    try:
        return int(read_json_object(folder.sae_config)["step"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _saelens_config(described: dict[str, Any], hook_name: str) -> dict[str, Any]:
    """Convert our `cfg.json` to SAELens's."""
    config: dict[str, Any] = {
        "architecture": described["architecture"],
        "d_in": described["d_in"],
        "d_sae": described["d_sae"],
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_name": described["model_name"],
            "hook_name": hook_name,
            "hf_hook_name": described["hook_name"] + _side(described),
            "dataset_path": described["dataset"],
            "context_size": described["ctx_len"],
            "prepend_bos": described.get("prepends_bos", True),
            "trained_with": "SAE Workbench",
        },
    }
    if described.get("passes_mean"):
        loading = {"center_writing_weights": True}
        config["metadata"]["model_from_pretrained_kwargs"] = loading
    if "k" in described:
        config |= {"k": described["k"], "rescale_acts_by_decoder_norm": False}
    return config


def _side(described: dict[str, Any]) -> str:
    """What to append to a module's name if its input is read."""
    return ".input" if described.get("hook_io") == "input" else ""


def _configured_hook(folder: RunFolder) -> str | None:
    """The hook in a run's configuration; None if the folder has no configuration, as
    `RunFolder.best`.
    """
    if not folder.config.is_file():
        return None
    config = yaml.safe_load(folder.config.read_text("utf-8"))
    return transformerlens_hook(ModelConfig.model_validate(config["model"]))
