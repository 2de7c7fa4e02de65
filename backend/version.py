"""The installed version of the program."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _version() -> str:
    try:
        return version("sae-workbench")
    except PackageNotFoundError:
        return "0"


VERSION = _version()
