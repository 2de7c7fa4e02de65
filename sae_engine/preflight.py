"""What can be known about a configuration before a job starts: no model is loaded, no torch is
imported.
"""

from __future__ import annotations

import json
from pathlib import Path

from sae_engine.errors import ConfigError
from sae_engine.schema.config import ModelConfig, RunConfig
from sae_engine.text.sources import (
    EMBEDDED_CORPUS,
    dataset_files,
    is_local_dataset,
    local_documents,
)

EMBEDDED_MODEL = "tiny-gemma2"


def model_path(config: ModelConfig) -> str:
    """Where the model is loaded from: the embedded folder, a local folder, or a hub id."""
    if config.name == EMBEDDED_MODEL:
        return str(embedded_model_folder())
    return config.name


def embedded_model_folder() -> Path:
    """The folder of the embedded model: in this package if a wheel was installed, else in the
    checkout.
    """
    package = Path(__file__).resolve().parent
    installed = package / "tiny_gemma2"
    return installed if installed.is_dir() else package.parent / "data" / "tiny_gemma2"


def check_config(config: RunConfig) -> None:
    """Raise `ConfigError` for what is wrong with a run and can be seen without loading its
    model.
    """
    _check_layer(config)
    if config.sae.pretrained is not None:
        _check_pretrained(Path(config.sae.pretrained).expanduser())
    if config.data.activations is not None:
        activation_paths(config.data.activations)
        return
    if is_local_dataset(config.data):
        first = next(iter(dataset_files(config.data)))
        if not any(text.strip() for text in local_documents(first, config.data.text_column)):
            raise ConfigError.of("data.dataset", f"'{first}' holds no text.")
    if (
        config.data.dataset != EMBEDDED_CORPUS
        and config.train.total_tokens is None
        and (
            config.train.num_epochs is not None
            and config.data.streaming
            and not is_local_dataset(config.data)
            and config.data.num_samples is None
        )
    ):
        raise ConfigError.of(
            "train.num_epochs",
            f"'{config.data.dataset}' is streamed and its length is not known; give "
            f"train.total_tokens, "
            "data.num_samples, or data.streaming = false.",
        )


def activation_paths(path: Path | str) -> list[Path]:
    """The files of an activation set: the file itself, or a folder's, in order of their names."""
    path = Path(path).expanduser()
    if not path.is_dir() and path.suffix != ".safetensors":
        raise ConfigError.of(
            "data.activations",
            f"'{path}' is no folder and its name does not end in .safetensors; activation files "
            "are .safetensors with a tensor 'activations' [tokens, d_in] "
            "(safetensors.torch.save_file writes them).",
        )
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ConfigError.of("data.activations", f"The folder '{path}' holds no .safetensors file.")
    if not files[0].exists():
        raise ConfigError.of("data.activations", f"There is no file or folder '{path}'.")
    return files


def _check_pretrained(path: Path) -> None:
    if path.suffix in (".pt", ".pth", ".ckpt", ".bin"):
        raise ConfigError.of(
            "sae.pretrained",
            f"'{path}' is a {path.suffix} file, which is not read here (it can hold code); save "
            "its tensors with safetensors.torch.save_file and name that file.",
        )
    if not path.exists():
        raise ConfigError.of("sae.pretrained", f"There is no file or folder '{path}'.")


def _check_layer(config: RunConfig) -> None:
    folder = Path(model_path(config.model)).expanduser()
    looks_local = config.model.name.startswith(("/", "./", "../", "~"))
    if not folder.is_dir():
        if looks_local:
            raise ConfigError.of("model.name", f"There is no folder '{config.model.name}'.")
        return
    try:
        described = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        raise ConfigError.of(
            "model.name", f"The folder '{config.model.name}' holds no readable config.json."
        ) from None
    num_layers = described.get("num_hidden_layers") or described.get("n_layer")
    if config.model.hook_point is None and num_layers and config.model.layer >= num_layers:
        raise ConfigError.of(
            "model.layer",
            f"Layer {config.model.layer} does not exist; '{config.model.name}' has layers 0 to "
            f"{num_layers - 1}.",
        )
    width = described.get("hidden_size") or described.get("n_embd")
    shape_is_ours = config.sae.d_sae is None and config.sae.pretrained is None
    if config.model.hook_point is None and shape_is_ours and width:
        try:
            config.sae.num_latents(width)
        except ValueError as error:
            raise ConfigError.of("sae.k", str(error)) from None
