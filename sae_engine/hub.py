"""Names of SAEs on the Hugging Face hub, and messages for its failures: one sentence, one remedy.

Read by `text` for datasets, by `model` for language models and by `interop` for SAEs.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Literal, NamedTuple

from sae_engine.errors import UserError

TIMEOUT_SECONDS = 5
"""For the one request made before a download; the library retries for much longer."""

PREFIX = "hub:"
NAME = re.compile(r"hub:([\w.-]+/[\w.-]+)(?:@([^/\s]+))?(?:/(.*))?", re.ASCII)
Kind = Literal["model", "dataset", "repository"]


class UnreachableError(UserError):
    """The hub does not answer, and what was asked for is not in the cache."""


class HubName(NamedTuple):
    """A repository and a path in it, parsed from `hub:OWNER/NAME[@REVISION][/PATH]`."""

    repository: str
    revision: str | None
    path: str
    """Of a file or a folder; empty for the repository itself."""

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Raises `UserError` for a text that is no such name."""
        found = NAME.fullmatch(text.strip())
        path = PurePosixPath((found and found[3]) or "")
        if found is None or ".." in path.parts or path.is_absolute():
            raise UserError(
                f"'{text}' does not name an SAE on the hub; write hub:OWNER/NAME/PATH, such as "
                "hub:google/gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82."
            )
        return cls(found[1], found[2], "" if str(path) == "." else str(path))

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return PREFIX + "/".join(filter(None, [self.repository + revision, self.path]))


def is_on_hub(text: str) -> bool:
    return text.strip().startswith(PREFIX)


def is_connection_error(error: BaseException) -> bool:
    """Whether the network is to blame.

    The hub's library uses httpx or httpx2, whichever is installed; each defines its own
    `TransportError`.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, OSError) or "TransportError" in names


def gated(kind: Kind, name: str) -> UserError:
    return UserError(
        f"The {kind} '{name}' is gated: accept its terms on its Hugging Face page and set HF_TOKEN "
        "to a token of that account."
    )


def not_found(kind: Kind, name: str, remedy: str) -> UserError:
    return UserError(
        f"There is no {kind} '{name}' on the Hugging Face hub (or it is private and HF_TOKEN is "
        f"not set); {remedy}."
    )


def unreachable(kind: Kind, name: str, remedy: str) -> UserError:
    return UnreachableError(
        f"The {kind} '{name}' is not cached and the Hugging Face hub cannot be reached: check the "
        f"network, or {remedy}."
    )


def refused(name: str, error: BaseException) -> str:
    """Why the hub refused a request about `name`, in one line."""
    reason = str(error).strip().splitlines() or ["no reason given"]
    return f"The hub refused a request about '{name}': {reason[-1].strip()}"
