"""`sae-workbench up` with jobs for tests: `python -m tests.chaos.servers quick|fake`."""

from __future__ import annotations

import sys

from rich.console import Console

from backend.serve import serve
from backend.settings import load_settings
from tests.backend.fake_engine import fake_job
from tests.chaos.jobs import quick_job

COMMANDS = {"quick": quick_job, "fake": fake_job}

if __name__ == "__main__":
    serve(load_settings(port=0), Console(), command=COMMANDS[sys.argv[1]])
