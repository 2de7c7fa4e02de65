"""Prints the OpenAPI document: `python -m backend.openapi > docs/openapi.json`."""

from __future__ import annotations

import json
import sys

from backend.app import create_api
from backend.settings import load_settings

if __name__ == "__main__":
    json.dump(create_api(load_settings()).openapi(), sys.stdout, indent=1, ensure_ascii=False)
    sys.stdout.write("\n")
