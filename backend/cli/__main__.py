"""The console script `sae-workbench`, also `python -m backend.cli`.

Starts `main` and explains in one sentence if the packages of the extra `app` are not installed.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command of `sys.argv`; returns its exit code."""
    try:
        from backend.cli.main import main as run

        code = run()
        if (interrupt := sys.modules.get("sae_engine.interrupt")) is not None:  # it trained
            interrupt.exit_if_abandoned(code)
        return code
    except ModuleNotFoundError as error:
        package = str(error.name).partition(".")[0]
        if package in ("backend", "sae_engine"):
            raise
        print(
            f"sae-workbench: The package {package} is not installed; "
            "pip install 'sae-workbench[app]' brings everything the program needs.",
            file=sys.stderr,
        )
        return 2


if __name__ == "__main__":
    sys.exit(main())
