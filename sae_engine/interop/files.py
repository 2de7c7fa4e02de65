"""The files of an SAE, in a folder here or in a repository of the hub: which one has its tensors,
and the settings next to it. No torch; nothing large is opened or downloaded.

Used by `formats` and `weights`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any, NamedTuple, NoReturn

import numpy as np
from safetensors import safe_open

from sae_engine.errors import UserError, cause_of
from sae_engine.files import looks_like_path, user_path
from sae_engine.hub import NAME, PREFIX, is_on_hub
from sae_engine.interop.hub_files import HubFolder

NAMES = (
    "sae.safetensors",
    "sae_weights.safetensors",
    "params.npz",
    "params.safetensors",
    "ae.safetensors",
    "ae.pt",
)
PICKLES = {".pt", ".pth", ".bin", ".ckpt", ".pkl"}
SUFFIXES = {".safetensors", ".npz", *PICKLES}
SETTINGS = ("cfg.json", "config.json", "../config.json")
"""Settings of an SAE; the last is that of a sparsify run, above the folders of its SAEs."""
MAX_SETTINGS = 2**20
"""Size in bytes above which a file is not settings; larger ones are neither downloaded nor read."""


class Header(NamedTuple):
    """What a file of tensors says before its tensors are read."""

    names: frozenset[str]
    metadata: dict[str, str]


class SAEFile:
    """The file with an SAE's tensors, and its settings."""

    def __init__(
        self,
        shown: str,
        place: PurePath,
        siblings: Collection[str],
        fetch: Callable[[str], Path],
        size_of: Callable[[str], int | None],
    ) -> None:
        self.shown = shown
        """As error messages name it."""
        self.place = place
        """Its absolute path, or its path in the hub, which starts with the repository's name."""
        self._siblings = siblings
        self.fetch = fetch
        """The local path of a file beside it, relative to its folder; downloads it if needed."""
        self._size_of = size_of
        """The size in bytes of a file beside it, before it is fetched; None if that is unknown."""

    def has_sibling(self, name: str) -> bool:
        return name in self._siblings

    @cached_property
    def header(self) -> Header | None:
        """None for a pickle, and for a file that is not on this machine."""
        path = Path(self.place)
        if path.suffix not in (".safetensors", ".npz") or not path.is_file():
            return None
        try:
            if path.suffix == ".npz":
                # Opened here, because numpy leaves a damaged file open.
                with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                    return Header(frozenset(arrays.files), {})
            with safe_open(path, framework="np") as file:
                return Header(frozenset(file.keys()), file.metadata() or {})
        except Exception as error:
            kind = "NumPy archive" if path.suffix == ".npz" else "safetensors file"
            said = cause_of(error)
            raise UserError(f"'{path}' is not a whole {kind} ({said}).") from error

    def settings(self, name: str) -> dict[str, Any]:
        """The JSON object in the file `name` beside the tensors; raises `UserError`."""
        shown = f"{self.shown.rpartition('/')[0]}/{name}"
        try:
            if not self.has_sibling(name):
                raise FileNotFoundError("it does not exist")
            _require_small(self._size_of(name))
            path = self.fetch(name)
            _require_small(path.stat().st_size)
            tree = _without_surrogates(json.loads(path.read_text("utf-8-sig")))
        except UserError:  # of the hub, or of a full disk
            raise
        except (OSError, ValueError, RecursionError) as error:
            raise UserError(f"'{shown}' cannot be read: {cause_of(error)}.") from error
        if not isinstance(tree, dict):
            raise UserError(f"'{shown}' is not a JSON object.")
        return tree

    def refuse(self, what: str, instead: str) -> NoReturn:
        raise UserError(f"'{self.shown}' is {what}, which is not supported; only {instead} are.")


def _without_surrogates(tree: Any) -> Any:
    """A tree of JSON, whose texts may hold half a character, which UTF-8 may not."""
    text = re.sub("[\ud800-\udfff]", "\ufffd", json.dumps(tree, ensure_ascii=False))
    return json.loads(text)


def _require_small(size: int | None) -> None:
    if size is not None and size > MAX_SETTINGS:
        raise ValueError(f"it has {size:,} bytes, and settings have at most {MAX_SETTINGS:,}")


def find_sae(path: str | Path) -> SAEFile:
    """The SAE at a file or folder, or at `hub:OWNER/NAME/PATH`; raises `UserError`."""
    return _on_hub(str(path)) if is_on_hub(str(path)) else _here(user_path(path))


def _here(path: Path) -> SAEFile:
    if path.is_dir():
        inside = sorted(path.iterdir())
        files = [file.name for file in inside if file.is_file()]
        folders = [folder.name for folder in inside if folder.is_dir()]
        path = path / choose(f"The folder '{path}'", files, folders)
    if not path.is_file():
        raise UserError(f"There is no SAE at '{path}'{hub_hint(str(path))}.")
    folder = path.absolute().parent
    siblings = [os.path.relpath(file, folder) for file in local_settings(folder)]
    return SAEFile(
        str(path),
        path.absolute(),
        siblings,
        lambda name: folder / name,
        lambda name: (folder / name).stat().st_size,
    )


def hub_hint(path: str) -> str:
    """What to write instead of a path that may be meant as a name of the hub; empty for others."""
    is_name = not looks_like_path(path) and NAME.fullmatch(f"{PREFIX}{path}")
    return f"; for the Hugging Face hub, write {PREFIX}{path}" if is_name else ""


def local_settings(folder: Path) -> list[Path]:
    """The files of settings of the SAE in a folder; the one above only for a sparsify run's SAE,
    whose folder is named after a module.
    """
    names = SETTINGS if is_module(folder.name) else SETTINGS[:-1]
    return [folder / name for name in names if (folder / name).is_file()]


def is_module(folder: str) -> bool:
    """Whether a folder's name is that of a module, such as `layers.3.mlp` or `embed_tokens`."""
    return re.search(r"(^|\.)\d+(\.|$)|^embed", folder) is not None


def _on_hub(text: str) -> SAEFile:
    folder = HubFolder.open(text)
    names = SETTINGS if is_module(PurePath(folder.path).name) else SETTINGS[:-1]
    name = folder.file_name or choose(f"'{folder.shown}'", folder.files, folder.folders)
    return SAEFile(
        f"{folder.shown}/{name}",
        PurePath(folder.repository, folder.path, name),
        [name for name in names if folder.has(name)],
        folder.fetch,
        folder.size_of,
    )


def choose(where: str, files: Collection[str], folders: Collection[str]) -> str:
    """The name of the file that holds an SAE's tensors; `UserError` if there is none or several."""
    for name in NAMES:
        if name in files:
            return name
    pickles = sorted(name for name in files if PurePath(name).suffix in PICKLES)
    if len(pickles) == 1:
        return pickles[0]
    if pickles:
        raise UserError(f"{where} has several SAEs; name one of its files, {_some(pickles)}.")
    message = f"{where} has none of {', '.join(NAMES)}"
    if folders:
        message += f"; name one of its folders, {_some(sorted(folders))}"
    raise UserError(f"{message}.")


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:6])
    return f"such as {shown}" if len(names) > 6 else f"{shown}"
