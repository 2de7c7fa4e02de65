"""The model card of an SAE on the hub: what it is, its figures, how to load it. No torch.

Called by `push`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from sae_engine.hub import HubName, is_on_hub
from sae_engine.schema.config import DataConfig, RunConfig
from sae_engine.schema.records import METRICS

FIGURES = (
    "eval_fvu", "eval_l0", "eval_cosine_similarity", "frac_alive", "frac_dense", "ce_delta",
    "ce_loss_score", "ce_loss_score_mean",
)  # fmt: skip
"""Metrics of held-out text."""


def model_card(
    target: HubName,
    name: str,
    config: RunConfig,
    described: Mapping[str, Any],
    metrics: Mapping[str, float],
    tokens: int,
) -> str:
    """A card in Markdown. `described` is the SAE's `cfg.json`, `metrics` its newest values and
    `tokens` the number of training tokens.
    """
    parts = [
        _front_matter(described),
        f"# {' '.join(name.split())}",
        _summary(config, described, tokens),
        *_figures(config, metrics),
        _loading(target, described),
        "## Configuration\n\n```yaml\n" + yaml.safe_dump(public_config(config)) + "```",
    ]
    return "\n\n".join(parts) + "\n"


def public_name(text: str) -> str:
    """A model or dataset as it may be published: of a local path, only the last part."""
    path = Path(text)
    is_local = not is_on_hub(text) and (text.startswith(("/", "./", "../", "~")) or path.exists())
    return path.name if is_local else text


def public_title(data: DataConfig) -> str:
    """The names of the datasets, as `DataConfig.title`, without local paths."""
    return " + ".join(public_name(part.dataset) for part in data.datasets)


def public_config(config: RunConfig) -> dict[str, Any]:
    """A configuration without local paths, which may name people and machines."""
    tree = config.model_dump(mode="json")
    for section, field in (
        ("model", "name"),
        ("data", "dataset"),
        ("data", "activations"),
        ("sae", "pretrained"),
    ):
        if tree[section][field] is not None:
            tree[section][field] = public_name(tree[section][field])
    for part in tree["data"]["mixture"] or []:
        part["dataset"] = public_name(part["dataset"])
    return tree


def _front_matter(described: Mapping[str, Any]) -> str:
    fields: dict[str, Any] = {
        "library_name": "saelens",
        "tags": ["sparse-autoencoder", "sae", "saelens", "sae-workbench"],
    }
    if "/" in described["model_name"]:
        fields["base_model"] = described["model_name"]
    return f"---\n{yaml.safe_dump(fields, sort_keys=False)}---"


def _summary(config: RunConfig, described: Mapping[str, Any], tokens: int) -> str:
    kind = f"TopK (k = {described['k']})" if "k" in described else "JumpReLU"
    side = "the input of " if described.get("hook_io") == "input" else ""
    place = f"{side}`{described['hook_name']}` of `{described['model_name']}`"
    text = (
        f"A {kind} sparse autoencoder with {described['d_sae']:,} latents, which reads {place} "
        f"(width {described['d_in']:,})."
    )
    if config.sae.pretrained is not None:
        return (
            f"{text} It was trained elsewhere (`{public_name(config.sae.pretrained)}`) and "
            "converted by SAE Workbench."
        )
    files = config.data.activations
    source = (
        f"`{described['dataset']}`" if files is None else f"activations in `{public_name(files)}`"
    )
    return f"{text} SAE Workbench trained it on {tokens:,} tokens of {source}."


def _figures(config: RunConfig, metrics: Mapping[str, float]) -> list[str]:
    rows = [
        f"| {METRICS[name].title} | {metrics[name]:.4g} | {METRICS[name].help} |"
        for name in FIGURES
        if name in metrics
    ]
    if not rows:
        return []
    heading = (
        "## Figures\n\nAs last measured in the run, on up to "
        f"{config.data.heldout_tokens:,} held-out tokens (cross-entropy: "
        f"{config.train.ce_tokens:,}).\n\n| metric | value | meaning |\n|---|---|---|\n"
    )
    return [heading + "\n".join(rows)]


def _loading(target: HubName, described: Mapping[str, Any]) -> str:
    folder = "/".join(filter(None, [target.path, "saelens"]))
    return f"""## Loading it

With [SAELens](https://github.com/decoderesearch/SAELens):

```python
from sae_lens import SAE

sae = SAE.from_pretrained("{target.repository}", "{folder}")
```

With SAE Workbench, which evaluates it and builds its features:

```console
$ sae-workbench import {target}
```

With any program: `sae.safetensors` has the tensors of `{described["activation"]}`."""
