"""Checks of a configuration that need no loaded model and no torch.

Used by everything that accepts a configuration, so that mistakes are reported before a job starts,
and by `model` for the paths and checks that both need.
"""

from __future__ import annotations

import json
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from sae_engine.errors import ConfigError, UserError
from sae_engine.files import looks_like_path, read_json_object, usable_paths, user_path
from sae_engine.hub import HubName, is_on_hub, require_model
from sae_engine.model_files import (
    check_description,
    check_special_ids,
    has_chat_template,
    sizes_of,
    special_ids,
)
from sae_engine.schema.config import DataConfig, ModelConfig, RunConfig
from sae_engine.text.amount import repetition, require_both_parts
from sae_engine.text.messages import no_chat_template, role_of
from sae_engine.text.notices import TextNotices
from sae_engine.text.paths import is_local_dataset
from sae_engine.text.sources import documents, open_text_source

EMBEDDED_MODEL = "tiny-gemma2"
CHECKED_CONVERSATIONS = 1_000
"""Conversations in which roles to train on are looked for."""
UNFINISHED = "unfinished"
"""A file in a folder to which activations are still being saved."""
MODEL_REMEDY = f"use a local folder or the embedded '{EMBEDDED_MODEL}'"


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
    with usable_paths():
        _check(config)


def check_hub(configs: Iterable[RunConfig]) -> None:
    """Raise `ConfigError` if the hub has no such model or dataset, or does not answer in seconds
    and they are not cached. Each is asked for once.
    """
    configs = list(configs)
    for name in {config.model.name: None for config in configs if not _is_local_model(config)}:
        with _in_field("model.name"):
            require_model(name, MODEL_REMEDY)
    texts = [data for c in configs if c.data.activations is None for data in c.data.datasets]
    for data in {(data.dataset, data.streaming): data for data in texts}.values():
        with _in_field("data.dataset"):
            open_text_source(data).require()


@contextmanager
def _in_field(field: str) -> Generator[None]:
    try:
        yield
    except UserError as error:
        raise ConfigError.of(field, str(error)) from None


def _is_local_model(config: RunConfig) -> bool:
    return user_path(model_path(config.model)).is_dir() or looks_like_path(config.model.name)


def _check(config: RunConfig) -> None:
    _check_model(config)
    if config.sae.pretrained is not None:
        _check_pretrained(config.sae.pretrained)
    if config.data.activations is not None:
        activation_paths(config.data.activations)
        return
    check_text(config.data)
    check_amount(config)
    first = config.data.datasets[0]
    if config.train.num_epochs is not None and open_text_source(first).is_unbounded:
        raise ConfigError.of(
            "train.num_epochs",
            f"'{config.data.dataset}' is streamed and its length is not known; give "
            "train.total_tokens, data.num_samples, or data.streaming = false.",
        )


def check_text(data: DataConfig) -> list[str]:
    """Read the beginning of the text; return what should be known about it, in sentences.

    Raises `ConfigError` if it cannot be used.
    """
    notices = TextNotices()
    for dataset in data.datasets:
        open_text_source(dataset, notices).check()
    return [*notices.sentences, *_check_roles(data)]


def check_amount(config: RunConfig) -> list[str]:
    """Compare the size of a text with the run's; returns sentences to know.

    Raises `ConfigError` if no document is left to train on or to hold out.
    """
    if config.data.activations is not None or config.data.mixture:
        return []
    require_both_parts(config.data)
    total = config.train.total_tokens
    if total is None or config.sae.pretrained is not None:
        return []
    sentence = repetition(config.data, total)
    return [] if sentence is None else [sentence]


def _check_roles(data: DataConfig) -> list[str]:
    """Compare `data.train_roles` with the beginning of conversations on disk."""
    chats = [dataset for dataset in data.datasets if dataset.messages_column]
    if not data.train_roles or not all(is_local_dataset(chat.dataset) for chat in chats):
        return []
    found = {
        message["role"]
        for chat in chats
        for document in islice(documents(chat, "train"), CHECKED_CONVERSATIONS)
        for message in json.loads(document.text)
    }
    missing = [role for role in data.train_roles if role_of(role) not in found]
    if not found or not missing:
        return []
    sentence = (
        f"data.train_roles names {' and '.join(missing)}, but the first conversations of "
        f"'{data.title}' only have {', '.join(sorted(found))}."
    )
    if len(missing) == len(data.train_roles):
        raise ConfigError.of("data.train_roles", sentence)
    return [sentence]


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
    path = user_path(path)
    if path.is_dir():
        if (path / UNFINISHED).exists():
            raise _unusable_activations(
                f"Saving the activations in '{path}' was interrupted, so some are missing; delete "
                "the folder and save them again."
            )
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


def _check_pretrained(path: str) -> None:
    if is_on_hub(path):
        try:
            HubName.parse(path)
        except UserError as error:
            raise ConfigError.of("sae.pretrained", str(error)) from None
    elif not user_path(path).exists():
        raise ConfigError.of("sae.pretrained", f"There is no file or folder '{path}'.")


def _check_model(config: RunConfig) -> None:
    """Check a configuration against the files of a local model."""
    folder = user_path(model_path(config.model))
    if not folder.is_dir():
        if looks_like_path(config.model.name):
            raise ConfigError.of("model.name", f"There is no folder '{config.model.name}'.")
        return
    try:
        described = read_json_object(folder / "config.json")
    except (OSError, ValueError):
        raise ConfigError.of(
            "model.name", f"The folder '{config.model.name}' holds no readable config.json."
        ) from None
    sizes = sizes_of(config.model, described)
    reads_text = config.data.activations is None
    reads_messages = reads_text and any(data.messages_column for data in config.data.datasets)
    if reads_messages and not has_chat_template(folder):
        raise no_chat_template(config.model.name)
    check_description(config.model, described, config.data.ctx_len if reads_text else None)
    check_special_ids(config.model, special_ids(folder), sizes.vocab)
    if sizes.num_layers:
        check_layer(config.model, sizes.num_layers)
    if sizes.width and config.model.hook_point is None and config.sae.pretrained is None:
        try:
            config.sae.num_latents(sizes.width)
        except ValueError as error:
            raise ConfigError.of("sae.k", str(error)) from None
