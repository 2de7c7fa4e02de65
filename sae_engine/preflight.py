"""Checks of a configuration that need no loaded model and no torch.

Used by everything that accepts a configuration, so that mistakes are reported before a job starts,
and by `model` for the paths and checks that both need.
"""

from __future__ import annotations

import json
from pathlib import Path

from sae_engine.errors import ConfigError
from sae_engine.schema.config import ModelConfig, RunConfig
from sae_engine.text.sources import open_text_source

EMBEDDED_MODEL = "tiny-gemma2"


def model_path(config: ModelConfig) -> str:
    """Where the model is loaded from: the embedded folder, a local folder, or a hub id."""
    return str(embedded_model_folder()) if config.name == EMBEDDED_MODEL else config.name


def embedded_model_folder() -> Path:
    """The folder of the embedded model: in this package if a wheel was installed, else in the
    checkout.
    """
    package = Path(__file__).resolve().parent
    installed = package / "tiny_gemma2"
    return installed if installed.is_dir() else package.parent / "data" / "tiny_gemma2"


def check_config(config: RunConfig) -> None:
    """Raise `ConfigError` for mistakes that can be seen without loading the model."""
    _check_model(config)
    if config.sae.pretrained is not None:
        _check_pretrained(Path(config.sae.pretrained).expanduser())
    if config.data.activations is not None:
        activation_paths(config.data.activations)
        return
    sources = [open_text_source(data) for data in config.data.datasets]
    for source in sources:
        source.check()
    if config.train.num_epochs is not None and sources[0].is_unbounded:
        raise ConfigError.of(
            "train.num_epochs",
            f"'{config.data.dataset}' is streamed and its length is not known; give "
            "train.total_tokens, data.num_samples, or data.streaming = false.",
        )


def check_layer(config: ModelConfig, num_layers: int) -> None:
    """Raise `ConfigError` for a hook point in a layer that a model of `num_layers` lacks."""
    layer = config.deepest_layer
    if layer is not None and layer >= num_layers:
        raise ConfigError.of(
            "model.hook_point" if config.hook_point else "model.layer",
            f"Layer {layer} does not exist; '{config.name}' has layers 0 to {num_layers - 1}.",
        )


def activation_paths(path: Path | str) -> list[Path]:
    """The files of an activation set: the file itself, or a folder's, in order of their names."""
    path = Path(path).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.safetensors"))
        if not files:
            raise _unusable_activations(f"The folder '{path}' holds no .safetensors file.")
        return files
    if path.suffix != ".safetensors":
        raise _unusable_activations(
            f"'{path}' is not a folder and its name does not end in .safetensors; activation files "
            "are .safetensors with a tensor 'activations' [tokens, d_in] "
            "(safetensors.torch.save_file writes them)."
        )
    if not path.exists():
        raise _unusable_activations(f"There is no file or folder '{path}'.")
    return [path]


def _unusable_activations(message: str) -> ConfigError:
    return ConfigError.of("data.activations", message)


def _check_pretrained(path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ConfigError.of(
            "sae.pretrained",
            f"'{path}' is a {path.suffix} file, which is not read because it can hold code; save "
            "its tensors with safetensors.torch.save_file and name that file.",
        )
    if not path.exists():
        raise ConfigError.of("sae.pretrained", f"There is no file or folder '{path}'.")


def _check_model(config: RunConfig) -> None:
    """Check layer and width against the `config.json` of a local model."""
    folder = Path(model_path(config.model)).expanduser()
    if not folder.is_dir():
        if config.model.name.startswith(("/", "./", "../", "~")):
            raise ConfigError.of("model.name", f"There is no folder '{config.model.name}'.")
        return
    try:
        described = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError.of(
            "model.name", f"The folder '{config.model.name}' holds no readable config.json."
        ) from None
    if num_layers := described.get("num_hidden_layers") or described.get("n_layer"):
        check_layer(config.model, num_layers)
    width = described.get("hidden_size") or described.get("n_embd")
    if width and config.model.hook_point is None and config.sae.pretrained is None:
        try:
            config.sae.num_latents(width)
        except ValueError as error:
            raise ConfigError.of("sae.k", str(error)) from None
