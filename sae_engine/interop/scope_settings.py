"""What the paths and settings of Gemma Scope and Qwen-Scope say. No torch. Used by `formats`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sae_engine.errors import UserError
from sae_engine.interop import fields
from sae_engine.interop.description import Description, quoted, text_of
from sae_engine.interop.files import SAEFile
from sae_engine.interop.places import Place, hub_id, layer_of, place_of


def describe_gemma_scope(file: SAEFile) -> Description:
    """Gemma Scope (Lieberum et al. 2024, arXiv 2408.05147) and its second release, which has a
    `config.json`. In the first, the path names model, site and layer.
    """
    path = file.place.as_posix()
    where = path[max(0, path.find("gemma-scope")) :]
    settings = file.settings("config.json") if file.has_sibling("config.json") else {}
    there, back = settings.get("hf_hook_point_in"), settings.get("hf_hook_point_out")
    is_transcoder = settings.get("affine_connection") or (back and back != there)
    if re.search("transcoder|crosscoder|/clt", where) or is_transcoder:
        file.refuse("a transcoder", "autoencoders of one site")
    if "/embedding" in where:
        file.refuse("an SAE of the token embeddings", "SAEs of a layer")
    if settings.get("architecture", "jump_relu") != "jump_relu":
        file.refuse(f"a Gemma Scope SAE of kind {quoted(settings['architecture'])}", "jump_relu")
    model_name, place = _of_first_release(where)
    if re.search(r"gemma-scope-2-\d", where) or there:
        model_name, place = _of_second_release(where, settings)
    notes = fields.note_on_unknown("config.json", settings, fields.GEMMA_SCOPE)
    return Description("gemma-scope", model_name, place, notes, settings)


def _of_first_release(where: str) -> tuple[str | None, Place]:
    layer = re.search(r"layer_(\d+)", where)
    number = layer_of(int(layer[1])) if layer else None
    release = re.search(r"gemma-scope-(\d+b)-(pt|it)-(res|mlp|att)", where)
    if release is None:
        return None, Place(number)
    model_name = f"google/gemma-2-{release[1]}" + ("-it" if release[2] == "it" else "")
    if release[3] == "att":
        heads = f"model.layers.{number}.self_attn.o_proj.input"
        return model_name, Place() if number is None else place_of(heads)
    return model_name, Place(number, {"res": "resid_post", "mlp": "mlp_out"}[release[3]])


def _of_second_release(where: str, settings: Mapping[str, Any]) -> tuple[str | None, Place]:
    release = re.search(r"gemma-scope-2-([\w.]+-(?:pt|it))", where)
    model_name = f"gemma-3-{release[1]}" if release else text_of(settings, "model_name")
    if model_name:
        model_name = hub_id(model_name.removeprefix("google/").replace("gemma-v3-", "gemma-3-"))
        model_name = re.sub("(-270m)-pt$", r"\1", model_name)
    if settings.get("hf_hook_point_in"):
        return model_name, place_of(settings["hf_hook_point_in"])
    found = re.search(r"(resid_post|mlp_out|attn_out)\w*/layer_(\d+)", where)
    if found is None:
        return model_name, Place()
    if found[1] == "attn_out":
        return model_name, place_of(f"model.layers.{found[2]}.self_attn.o_proj.input")
    return model_name, Place(layer_of(int(found[2])), found[1])


def describe_qwen_scope(file: SAEFile) -> Description:
    """Qwen-Scope: TopK on inputs that are not centered. The repository's name, such as
    `SAE-Res-Qwen3-1.7B-Base-W32K-L0_50`, has the model and k; the file's, the layer.
    """
    release = re.search(r"SAE-Res-(.+)-W\d+K-L0_(\d+)", file.place.as_posix())
    layer = re.search(r"layer(\d+)\.sae", file.place.name)
    if release is None:
        raise UserError(
            f"'{file.shown}' does not say its k; keep it in a folder with the name of its "
            "repository, such as SAE-Res-Qwen3-1.7B-Base-W32K-L0_50."
        )
    place = Place(layer_of(int(layer[1])), "resid_post") if layer else Place()
    settings = {"k": int(release[2])}
    return Description("qwen-scope", f"Qwen/{release[1]}", place, [], settings)
