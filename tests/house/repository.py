"""What the tests of this folder know about the repository: its root and its tracked files."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def tracked_files() -> list[Path]:
    """Files that git tracks or would, relative to the root."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    paths = (Path(name.decode()) for name in listed.stdout.split(b"\0") if name)
    return [path for path in paths if (ROOT / path).is_file()]
