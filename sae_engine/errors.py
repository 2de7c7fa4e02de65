"""Errors the engine raises for problems that the user can fix.

    UserError            one sentence that names the value, the bound and the remedy
    ├── ConfigError      … about fields of the configuration, which it lists
    └── DiskFullError    … there is no space to write

Bugs in the program raise assertion errors instead.
"""

from __future__ import annotations

from sae_engine.schema.problems import FieldProblem

MAX_CAUSE = 200
"""Characters of another program's message that are passed on."""


def cause_of(error: BaseException) -> str:
    """What a library says, on one line and without its tail, for a sentence of our own; libraries
    may quote whole files.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= MAX_CAUSE else f"{said[:MAX_CAUSE]}…"


class UserError(ValueError):
    """A problem outside the program; its message is shown to the user unchanged."""


class ConfigError(UserError):
    """Fields of a configuration that cannot be used."""

    def __init__(self, problems: list[FieldProblem]) -> None:
        super().__init__(
            " ".join(f"{p.field}: {p.message}" if p.field else p.message for p in problems)
        )
        self.problems = problems

    @classmethod
    def of(cls, field: str, message: str) -> ConfigError:
        return cls([FieldProblem(field=field, message=message)])


class DiskFullError(UserError):
    """The disk is full; files published before are intact."""
