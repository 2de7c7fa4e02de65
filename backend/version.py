"""The program's version, as it was installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def _version() -> str:
    try:
        return version("sae-workbench")
    except PackageNotFoundError:
        return "0"


VERSION = _version()
