"""Tries Arrow and Parquet files in a separate process, because damaged ones crash the process that
reads them: Arrow trusts much of what a file says about itself.

Called by `local_files` and `preview` before they read; `python -m sae_engine.text.probe` is the
process. It gets a JSON list of paths on its standard input, and prints each before it reads it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path

from sae_engine.text.columns import READERS, column_names
from sae_engine.text.decoding import unusable
from sae_engine.text.paths import data_suffix
from sae_engine.text.rows import Column

TRIED_ROWS = 100
TRIED_COLUMNS = 64
MAX_SECONDS = 300
MAX_REMEMBERED = 10_000

_State = tuple[int, int]
_harmless: OrderedDict[Path, _State] = OrderedDict()


def require_harmless(paths: Iterable[Path]) -> None:
    """Raise `ConfigError` for the first file that crashes the process that reads its beginning.

    A file is tried once, and again when it changes. Files of other kinds are skipped.
    """
    states = {path.absolute(): _state(path) for path in paths if data_suffix(path) in READERS}
    new = [path for path, state in states.items() if _harmless.get(path) != state]
    if not new:
        return
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(
            command,
            input=json.dumps([str(path) for path in new]),
            capture_output=True,
            text=True,
            timeout=MAX_SECONDS,
        )
    except subprocess.TimeoutExpired:
        done = None  # large files on a slow disk are not damaged
    if done is not None and done.returncode < 0:
        path = done.stdout.splitlines()[-1] if done.stdout else new[0]
        raise unusable(
            f"'{path}' cannot be read: it is damaged and crashes the program that reads it; copy "
            "it again or leave it out."
        )
    _harmless.update({path: states[path] for path in new})
    while len(_harmless) > MAX_REMEMBERED:
        _harmless.popitem(last=False)


def _state(path: Path) -> _State:
    try:
        found = path.stat()
    except OSError:
        return (0, 0)
    return found.st_size, found.st_mtime_ns


def _try(path: Path) -> None:
    suffix = data_suffix(path)
    assert suffix is not None, "only files with a reader are sent"
    for name in column_names(path, suffix)[:TRIED_COLUMNS]:
        with suppress(Exception):  # reported where the file is read
            list(islice(READERS[suffix](path, Column(name, "data.text_column")), TRIED_ROWS))


def main() -> None:
    for path in json.load(sys.stdin):
        print(path, flush=True)
        with suppress(Exception):
            _try(Path(path))


if __name__ == "__main__":
    main()
