"""The engine's input for each run on a pass of the language model. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import yaml

from sae_engine.files import RunFolder, published_file
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import StopRequest


def never() -> StopRequest:
    return StopRequest.NONE


class Member(NamedTuple):
    config: RunConfig
    folder: RunFolder
    should_stop: Callable[[], StopRequest] = never
    """Polled at least once per step and inside long work."""
    resume: bool = False
    """Continue from the folder's checkpoint, exactly as if the run had not stopped."""

    def save_config(self) -> None:
        with published_file(self.folder.config) as path:
            tree = self.config.model_dump(mode="json")
            path.write_text(yaml.safe_dump(tree, sort_keys=False), "utf-8")
