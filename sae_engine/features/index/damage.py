"""Questions whose answer fails because a file of the index is damaged say which one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from sae_engine.errors import UserError


class _Verifiable(Protocol):
    def verify(self) -> None: ...


_Index = TypeVar("_Index", bound=_Verifiable)
_Given = ParamSpec("_Given")
_Answer = TypeVar("_Answer")
_Question = Callable[Concatenate[_Index, _Given], _Answer]


def naming_damage(
    question: _Question[_Index, _Given, _Answer],
) -> _Question[_Index, _Given, _Answer]:
    """Let a question to an index that fails unexpectedly raise `IndexDamagedError` for a file that
    is not what the manifest says. Checksums are compared only then, as that reads the whole index.
    """

    @functools.wraps(question)
    def asked(index: _Index, *args: _Given.args, **kwargs: _Given.kwargs) -> _Answer:
        try:
            return question(index, *args, **kwargs)
        except UserError:
            raise
        except Exception:
            index.verify()
            raise

    return asked
