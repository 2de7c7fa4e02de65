"""Where the newest checkpoint of a run is, from its header. Imports no torch.

Read by the loop, and by the backend when a machine is lost.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple, cast

from safetensors import safe_open

from sae_engine.files import RunFolder


class Position(NamedTuple):
    step: int
    tokens: int


def saved_position(folder: RunFolder) -> Position:
    """That of the newest readable checkpoint; zeros without one."""
    for path in (folder.checkpoint, folder.previous_checkpoint):
        try:
            with cast(Any, safe_open(path, "np")) as file:
                described = json.loads(file.metadata()["state"])
            return Position(int(described["step"]), int(described["tokens"]))
        except Exception:  # missing or damaged, which resuming reports
            continue
    return Position(0, 0)
