"""Command-line options for all fields of the configuration, such as `--sae.k 64`."""

from __future__ import annotations

import argparse
from functools import partial

from sae_engine.schema.fields import (
    FieldSpec,
    Value,
    field_specs,
    parse_value,
    section_help,
    value_text,
)

OWN = "name"
"""Field for which commands define an option themselves."""


def add_fields(parser: argparse.ArgumentParser) -> None:
    """Add one option per field, grouped by section, with the field's help and default."""
    sections = section_help()
    groups = {
        name: parser.add_argument_group(name, description=_escaped(text))
        for name, text in {"run": "The run itself.", **sections}.items()
    }
    for path, spec in field_specs().items():
        if path != OWN:
            groups[spec.section].add_argument(
                f"--{path}",
                dest=path,
                default=argparse.SUPPRESS,
                type=partial(parse_value, path),
                metavar="|".join(spec.choices) or spec.kind.upper(),
                help=_escaped(_help(spec)),
            )


def field_values(options: argparse.Namespace) -> dict[str, Value]:
    """The fields given on the command line, by path."""
    given = vars(options)
    return {path: given[path] for path in field_specs() if path != OWN and path in given}


def _help(spec: FieldSpec) -> str:
    default = "unset" if spec.default is None else value_text(spec.path, spec.default)
    return f"{' '.join(spec.help.split())} (default: {default})"


def _escaped(text: str) -> str:
    return text.replace("%", "%%")
