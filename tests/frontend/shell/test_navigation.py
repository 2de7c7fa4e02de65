"""The page table and the scripts in views/ agree."""

from __future__ import annotations

from pathlib import Path

import frontend
from frontend.shell.navigation import PAGES, script_of

ROOT = Path(frontend.__file__).parent


def test_every_script_is_a_page_and_every_page_has_a_script() -> None:
    scripts = {f"views/{path.name}" for path in (ROOT / "views").glob("*.py")}
    assert {script_of(page.name) for page in PAGES} == scripts - {"views/__init__.py"}
