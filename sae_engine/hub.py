"""Error messages for Hugging Face hub failures, each one sentence with a remedy.

Read by `text` for datasets and by `model` for language models.
"""

from __future__ import annotations

from typing import Literal

from sae_engine.errors import UserError

TIMEOUT_SECONDS = 5
"""For the one request made before a download; the library retries for much longer."""

Kind = Literal["model", "dataset"]


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
    return UserError(
        f"The {kind} '{name}' is not cached and the Hugging Face hub cannot be reached: check the "
        f"network, or {remedy}."
    )
