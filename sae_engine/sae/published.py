"""The two files of a published SAE: `sae.safetensors` and the `cfg.json` that describes it.

Written by `training`; read by `interop` and by programs that load the SAE.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from sae_engine.files import RunFolder, published_file
from sae_engine.sae.autoencoders import BY_PRE_ACTIVATION, SAE
from sae_engine.schema.config import RunConfig


def publish_sae(
    sae: SAE,
    folder: RunFolder,
    config: RunConfig,
    hook_name: str,
    *,
    prepends_bos: bool = True,
    step: int | None = None,
) -> None:
    """Write both files into `folder`; `sae` maps raw activations (see `SAE.folded`) and was trained
    for `step` steps, unless it is from elsewhere.
    """
    with published_file(folder.sae) as path:
        sae.save(path)
    with published_file(folder.sae_config) as path:
        write_sae_config(
            path,
            sae,
            model_name=config.model.name,
            hook_name=hook_name,
            hook_io=config.model.hook_io,
            dataset=config.data.title,
            ctx_len=config.data.ctx_len,
            prepends_bos=prepends_bos,
            step=step,
        )


def write_sae_config(
    path: Path,
    sae: SAE,
    *,
    model_name: str,
    hook_name: str,
    hook_io: Literal["output", "input"] = "output",
    dataset: str,
    ctx_len: int,
    prepends_bos: bool = True,
    step: int | None = None,
) -> None:
    """Write `cfg.json`: what the published tensors are and where the SAE's inputs come from."""
    described = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        **({} if sae.k is None else {"k": sae.k}),
        **({} if sae.ranks_by_norm else {"ranks_by": BY_PRE_ACTIVATION}),
        **({"passes_mean": True} if sae.passes_mean else {}),
        "activation": sae.formula,
        "dtype": "float32",
        "model_name": model_name,
        "hook_name": hook_name,
        **({} if hook_io == "output" else {"hook_io": hook_io}),
        "dataset": dataset,
        "ctx_len": ctx_len,
        **({} if prepends_bos else {"prepends_bos": False}),
        **({} if step is None else {"step": step}),
    }
    path.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
