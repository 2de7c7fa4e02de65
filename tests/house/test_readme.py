"""The README's commands, presets, settings and files exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from backend.settings import PREFIX, Settings
from sae_engine.presets import presets, validate_config
from sae_engine.schema.fields import field_names
from tests.house.repository import ROOT, tracked_files

_README = (ROOT / "README.md").read_text("utf-8")
_MANUALS = _README + "".join(path.read_text("utf-8") for path in (ROOT / "docs").glob("*.md"))
_COMMAND = Path(sys.executable).with_name("sae-workbench")
_SHELL_LINES = re.findall(
    r"sae-workbench ((?:up|train|lookup|export|import|push)\b.*)$", _MANUALS, re.MULTILINE
)
_SETTINGS = [f"{PREFIX}{name.upper()}" for name in Settings.model_fields]


@cache
def _help(*command: str) -> str:
    done = subprocess.run([_COMMAND, *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _make_targets() -> set[str]:
    text = (ROOT / "Makefile").read_text("utf-8")
    return set(re.findall(r"^([a-z]+):", text, re.MULTILINE))


def test_every_make_target_that_is_named_exists() -> None:
    named = set(re.findall(r"(?:`|\$ |&& )make ([a-z]+)", _MANUALS))
    assert {"run", "test", "check"} <= named <= _make_targets()


def test_make_alone_lists_every_target() -> None:
    listed = subprocess.run(["make", "--silent"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {target for target in _make_targets() if f"make {target}" in listed} == _make_targets()


@pytest.mark.parametrize("line", _SHELL_LINES)
def test_the_command_understands_every_flag_that_is_shown(line: str) -> None:
    command, *rest = line.split()
    for flag in re.findall(r"(--[\w.-]+)", " ".join(rest)):
        assert flag[2:] in field_names() or flag in _help(command), flag


def test_the_flags_given_through_make_are_those_of_up() -> None:
    for flag in re.findall(r"make run ARGS=\"(--[\w-]+)", _MANUALS):
        assert flag in _help("up")


def test_the_table_of_presets_is_complete() -> None:
    table = _README.partition("The presets:")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE) == list(presets())


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", _README, re.DOTALL))
def test_an_example_configuration_is_valid(block: str) -> None:
    validate_config(yaml.safe_load(block))


@pytest.mark.parametrize("name", _SETTINGS)
def test_a_setting_is_documented(name: str) -> None:
    assert f"| `{name}` |" in _README


def test_every_documented_setting_exists() -> None:
    documented = set(re.findall(rf"^\| `({PREFIX}\w+)` \|", _README, re.MULTILINE))
    sources = [path for path in tracked_files() if path.parts[0] in ("backend", "frontend")]
    texts = "".join((ROOT / path).read_text("utf-8") for path in sources if path.suffix == ".py")
    assert {name for name in documented - set(_SETTINGS) if name not in texts} == set()


def _tree() -> list[str]:
    """Lines of the README's file tree."""
    block = _README.partition("## Where things are")[2].partition("```text\n")[2]
    return block.partition("```")[0].splitlines()


def test_the_tree_is_short_and_names_every_wing() -> None:
    tree = _tree()
    assert len(tree) <= 30
    place = ""
    named: set[str] = set()
    for line in tree:
        if not line.startswith(" "):
            place = line.split("/")[0]
        named |= {f"{place}/{name}" for name in re.findall(r"(\w+(?:/\w+)*)/(?=\s|,|$)", line)}
    wings = {
        "/".join(path.parts[:2])
        for path in tracked_files()
        if path.parts[0] in ("sae_engine", "backend", "frontend")
        and path.suffix == ".py"
        and len(path.parts) > 2
    }
    assert wings - named == set()


def test_every_file_that_is_named_exists() -> None:
    table = _README.partition("| to | start at |")[2].partition("\n\n")[0]
    named = set(re.findall(r"`((?:sae_engine|backend|frontend|tests|benchmarks)/[\w/.]*)`", table))
    named |= set(re.findall(r"\b(?:\w+/)*\w+\.py\b", table))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_wing_says_what_it_is_for_what_it_uses_and_what_uses_it() -> None:
    wings = {
        path.parent
        for path in tracked_files()
        if path.parts[0] in ("sae_engine", "backend", "frontend")
        and path.suffix == ".py"
        and len(path.parts) == 3
    }
    for wing in wings:
        docstring = ast.get_docstring(ast.parse((ROOT / wing / "__init__.py").read_text()))
        assert docstring, wing
        assert "Uses" in docstring, wing
        assert re.search(r"used by|uses it", docstring), wing
