"""What the engine raises when the user asked for something that cannot be done.

    UserError            one sentence that names the value, the bound and the remedy
    ├── ConfigError      … about fields of the configuration, which it lists
    └── DiskFullError    … there is no room to write

Mistakes of the program itself are assertions, never these.
"""

from __future__ import annotations

from sae_engine.schema.problems import FieldProblem


class UserError(ValueError):
    """The user's mistake or the world's; the message is fit to be shown as it is."""


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
    """There was no room to write; what was published before is untouched."""
