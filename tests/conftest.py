"""What holds for every test: no setting of the person who runs them, and no network."""

from __future__ import annotations

import os

for _name in [name for name in os.environ if name.startswith("SAE_WORKBENCH_")]:
    del os.environ[_name]
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["STREAMLIT_BROWSER_GATHER_USAGE_STATS"] = "false"
