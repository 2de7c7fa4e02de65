"""The Python guide's examples, run in the guide's order as one program."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_engine import presets
from sae_engine.files import RunFolder
from sae_engine.schema.config import RunConfig
from tests.house.repository import ROOT

SHORT = {"total_tokens": 6000, "batch_size_tokens": 256, "eval_every": 10, "ce_tokens": 512}


def shortened(resolve: Callable[..., RunConfig]) -> Callable[..., RunConfig]:
    """The same recipes, ended early."""

    def resolve_config(preset: str | None, overrides: dict[str, Any]) -> RunConfig:
        return resolve(preset, overrides | {"train": SHORT, "index": {"tokens": 2000}})

    return resolve_config


def test_the_python_guide_runs_as_it_stands(tmp_path: Path, monkeypatch, capsys) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs/python.md").read_text("utf-8"), re.M | re.S
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(presets, "resolve_config", shortened(presets.resolve_config))
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"<docs/python.md, example {number + 1}>", "exec"), names)

    shown = capsys.readouterr().out
    assert re.search(r"^step \d+: held-out FVU 0\.\d{3}$", shown, re.M)
    assert re.search(r"^ *import feature \d+ at \d+\.\d\d$", shown, re.M)
    assert re.search(r"^\d+ of 512 features are dead on [\d,]+ tokens$", shown, re.M)
    assert shown.count("\nplain ") == shown.count("\nsteered ") == 10
    assert "'<bos>' []" in shown
    assert "'eval_fvu'" in shown
    assert "'ce_delta'" in shown
    assert [f"layer {n} finished" in shown for n in (1, 3, 5)] == [True] * 3
    assert shown.rstrip().splitlines()[-1].startswith("sae.k: ")
    assert names["folder"].best.sae.exists()
    for name in ("first", "layer-1", "layer-3", "layer-5", "from-files"):
        assert RunFolder(tmp_path / "runs" / name).sae.exists()
