"""`docs/architectures.md` against the models' own output, on tiny random models."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

from sae_engine.errors import ConfigError
from sae_engine.model.hook_points import layer_stack
from sae_engine.model.language_model import LanguageModel, SpliceModel
from sae_engine.preflight import embedded_model_folder
from sae_engine.schema.config import ModelConfig
from tests.house.repository import ROOT
from tests.sae_engine.model.architectures import ARCHITECTURES

IDS = torch.randint(4, 8192, (2, 10), generator=torch.Generator().manual_seed(0))
IDS[:, 0] = 2
ORDINARY = IDS > 2
LAYER = 1

_DOCUMENT = (ROOT / "docs/architectures.md").read_text("utf-8")
TABLE = {
    name: [cell.strip() for cell in cells.split("|")]
    for name, cells in re.findall(r"^\| `([\w-]+)` \|(.*)\|$", _DOCUMENT, re.MULTILINE)
}
"""Architecture -> the cells layers, sites, cross-entropy, logits, steering."""


def saved(name: str, folder: Path) -> nn.Module:
    """A random model, written to `folder`. Norms and biases are random too."""
    torch.manual_seed(0)
    model = ARCHITECTURES[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
            else:
                parameter.mul_(3)
    model.save_pretrained(folder)
    for file in embedded_model_folder().glob("tokenizer*.json"):
        shutil.copy(file, folder)
    return model


def hooked(model: nn.Module, path: str, hook: Callable[[Tensor], Tensor | None]) -> object:
    """Apply `hook` to a module's output in each pass."""

    def run(_module: object, _inputs: object, output: object) -> object:
        first = output[0] if isinstance(output, tuple) else output
        new = hook(first)
        if new is None:
            return output
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return model.get_submodule(path).register_forward_hook(run)


def output_of(model: nn.Module, path: str, ids: Tensor = IDS) -> Tensor:
    seen: list[Tensor] = []
    handle = hooked(model, path, seen.append)
    model(ids, use_cache=False)
    handle.remove()
    return seen[0]


def summed_loss(logits: Tensor) -> float:
    counted = ORDINARY[:, :-1]
    return cross_entropy(logits[:, :-1][counted], IDS[:, 1:][counted], reduction="sum").item()


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_a_row_of_the_table_is_what_the_model_itself_computes(name: str, tmp_path: Path) -> None:
    own = saved(name, tmp_path)
    model = LanguageModel.load(ModelConfig(name=str(tmp_path), layer=LAYER))
    at = model.hook_name
    whole = model.full()
    found = [
        extraction(own, model),
        sites(own, model, at),
        splicing(own, whole, at),
        logits(own, model, whole),
        steering(own, whole, at),
    ]
    assert found == TABLE[name]


def extraction(own: nn.Module, model: LanguageModel) -> str:
    expected = output_of(own, model.hook_name)
    # Random models amplify rounding, which depends on the processor: compare on their own scale.
    scale = expected.abs().max().item()
    torch.testing.assert_close(model.activations(IDS), expected, rtol=1e-5, atol=5e-6 * scale)
    assert f".{LAYER}" in model.hook_name
    assert "vision" not in model.hook_name
    return "whole" if model.notices else "cut"


def sites(own: nn.Module, model: LanguageModel, layer: str) -> str:
    """The sites that are known; they add up to what the layer adds to the residual stream."""
    below = re.sub(rf"\.{LAYER}$", f".{LAYER - 1}", layer)
    added = output_of(own, layer) - output_of(own, below)
    known: dict[str, Tensor] = {}
    for site in ("attn_out", "mlp_out"):
        try:
            at_site = model.at(model.config.model_copy(update={"site": site}))
        except ConfigError:
            continue
        assert at_site is not None
        known[site] = at_site.activations(IDS)
    if len(known) == 2:
        factor = getattr(own.config, "residual_multiplier", 1)
        torch.testing.assert_close(factor * sum(known.values()), added, rtol=1e-3, atol=1e-4)
    return "all" if len(known) == 2 else ", ".join(["`resid_post`", *(f"`{s}`" for s in known)])


def splicing(own: nn.Module, whole: SpliceModel, at: str) -> str:
    total, count = whole.cross_entropy(IDS)
    assert count == int(ORDINARY[:, :-1].sum())
    assert total == pytest.approx(summed_loss(own(IDS, use_cache=False).logits), rel=1e-5)
    handle = hooked(own, at, lambda x: torch.where(ORDINARY[..., None], x.flip(-1), x))
    expected = summed_loss(own(IDS, use_cache=False).logits)
    handle.remove()
    assert whole.cross_entropy(IDS, lambda x: x.flip(-1))[0] == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(total, rel=1e-5)
    return "yes"


def logits(own: nn.Module, model: LanguageModel, whole: SpliceModel) -> str:
    """Without a soft-cap, a direction alone in the residual stream gives its logits by the matrix,
    up to the norm's scale.
    """
    matrix = model.unembedding(0, whole.model)
    if matrix is None:
        return "no"
    direction = torch.randn(model.d_in)
    stack = own.get_submodule(layer_stack(own))
    last = f"{layer_stack(own)}.{len(stack) - 1}"

    def of(vector: Tensor) -> Tensor:
        handle = hooked(own, last, vector.expand_as)
        answer = uncapped(own, own(IDS[:1, :2], use_cache=False).logits[0, -1])
        handle.remove()
        return answer

    change = of(direction) - of(torch.zeros_like(direction))
    assert cosine_similarity(matrix @ direction, change, dim=0) > 0.99999
    # The norm's scale: of a vector of unit mean square, 1; a LayerNorm subtracts the mean first.
    ratio = change.norm() / (matrix @ direction).norm()
    scales = [direction.std(correction=0), direction.pow(2).mean().sqrt(), torch.tensor(1.0)]
    assert min(abs(ratio * scale - 1) for scale in scales) < 1e-3
    return "yes"


def uncapped(own: nn.Module, capped: Tensor) -> Tensor:
    config = own.config.get_text_config()
    caps = [getattr(config, name, None) for name in ("final_logit_softcapping", "logits_soft_cap")]
    cap = next((cap for cap in caps if cap), None)
    return capped if cap is None else cap * torch.atanh(capped / cap)


def steering(own: nn.Module, whole: SpliceModel, at: str) -> str:
    """Two tokens, the second one from the cache if there is one."""
    add = torch.randn(whole.prefix.d_in)
    ids = given = IDS[:1]
    past = None
    for _ in range(2):
        answer, past = whole.next_logits(given, past, add)
        ordinary = (ids > 2)[..., None]
        handle = hooked(own, at, lambda x, ordinary=ordinary: torch.where(ordinary, x + add, x))
        expected = own(ids, use_cache=False).logits[0, -1]
        handle.remove()
        torch.testing.assert_close(answer, expected, rtol=1e-3, atol=1e-3)
        assert isinstance(past, Tensor) == own._is_stateful
        given = answer.argmax().view(1, 1)
        ids = torch.cat([ids, given], dim=1)
    return "yes"


def test_the_table_lists_exactly_the_architectures_that_are_tested() -> None:
    assert list(TABLE) == sorted(ARCHITECTURES)
