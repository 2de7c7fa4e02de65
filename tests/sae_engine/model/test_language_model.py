"""Extraction against two independent methods: a forward hook and `output_hidden_states`."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from sae_engine.errors import ConfigError, UserError
from sae_engine.model.language_model import LanguageModel
from sae_engine.schema.config import ModelConfig

SITES = ["resid_post", "mlp_out", "attn_out"]
# The module whose output is added to the residual stream, written by hand.
HOOKED = {
    "gemma2": {
        "resid_post": "model.layers.{}",
        "mlp_out": "model.layers.{}.post_feedforward_layernorm",
        "attn_out": "model.layers.{}.post_attention_layernorm",
    },
    "llama": {
        "resid_post": "model.layers.{}",
        "mlp_out": "model.layers.{}.mlp",
        "attn_out": "model.layers.{}.self_attn",
    },
    "gpt2": {
        "resid_post": "transformer.h.{}",
        "mlp_out": "transformer.h.{}.mlp",
        "attn_out": "transformer.h.{}.attn",
    },
}


def ids_of(seed: int = 0, rows: int = 3, ctx: int = 20) -> torch.Tensor:
    ids = torch.randint(4, 8192, (rows, ctx), generator=torch.Generator().manual_seed(seed))
    ids[:, 0] = 2
    ids[1, 9] = 1
    return ids


def whole(folder: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()


def by_forward_hook(model: torch.nn.Module, path: str, ids: torch.Tensor) -> torch.Tensor:
    seen = []
    module = model.get_submodule(path)
    handle = module.register_forward_hook(lambda _m, _i, output: seen.append(output))
    with torch.no_grad():
        model(ids, use_cache=False)
    handle.remove()
    return seen[0][0] if isinstance(seen[0], tuple) else seen[0]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", HOOKED)
@pytest.mark.parametrize("layer", [0, 2, 3])
def test_extraction_equals_a_forward_hook_on_the_whole_model(
    model_folders, architecture, site, layer
):
    folder = model_folders[architecture]
    model = LanguageModel.load(ModelConfig(name=str(folder), layer=layer, site=site))
    expected = by_forward_hook(whole(folder), HOOKED[architecture][site].format(layer), ids_of())
    torch.testing.assert_close(model.activations(ids_of()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", HOOKED)
def test_resid_post_equals_the_whole_models_hidden_states(model_folders, architecture):
    folder = model_folders[architecture]
    with torch.no_grad():
        states = whole(folder)(ids_of(), output_hidden_states=True, use_cache=False).hidden_states
    for layer in (0, 1, 2):
        model = LanguageModel.load(ModelConfig(name=str(folder), layer=layer))
        torch.testing.assert_close(model.activations(ids_of()), states[layer + 1], rtol=0, atol=0)


def test_attention_and_mlp_outputs_sum_to_the_residual_stream(model_folders):
    folder, ids = str(model_folders["gemma2"]), ids_of()

    def read(layer: int, site: str) -> torch.Tensor:
        return LanguageModel.load(ModelConfig(name=folder, layer=layer, site=site)).activations(ids)

    total = read(0, "resid_post") + read(1, "attn_out") + read(1, "mlp_out")
    torch.testing.assert_close(total, read(1, "resid_post"))


def test_a_hook_point_by_path_reads_output_or_input(model_folders):
    folder = str(model_folders["gemma2"])
    by_site = LanguageModel.load(ModelConfig(name=folder, layer=1)).activations(ids_of())
    by_path = LanguageModel.load(ModelConfig(name=folder, hook_point="model.layers.1"))
    as_input = LanguageModel.load(
        ModelConfig(name=folder, hook_point="model.layers.2", hook_io="input")
    )
    assert torch.equal(by_path.activations(ids_of()), by_site)
    assert torch.equal(as_input.activations(ids_of()), by_site)


def test_only_the_layers_up_to_the_hook_are_loaded(model_folders):
    for layer in range(3):
        model = LanguageModel.load(ModelConfig(name=str(model_folders["gemma2"]), layer=layer))
        names = [name for name, _ in model._model.named_parameters()]
        assert {int(n.split(".")[1]) for n in names if n.startswith("layers.")} == set(
            range(layer + 1)
        )
        assert not any("lm_head" in name for name in names)


def test_the_forward_pass_stops_at_the_hook(model_folders):
    config = ModelConfig(name=str(model_folders["gemma2"]), hook_point="model.layers.1.mlp.up_proj")
    model = LanguageModel.load(config)
    ran = []
    model._model.layers[1].mlp.down_proj.register_forward_hook(lambda *_: ran.append("down_proj"))
    model.activations(ids_of())
    assert ran == []


@pytest.mark.parametrize("architecture", HOOKED)
def test_several_hooks_on_one_pass_equal_one_load_each(model_folders, architecture):
    folder = str(model_folders[architecture])
    configs = [
        ModelConfig(name=folder, layer=layer, site=site)
        for layer, site in [(2, "resid_post"), (0, "mlp_out"), (3, "attn_out"), (2, "attn_out")]
    ]
    model = LanguageModel.load(configs[0], also=configs[1:])
    assert [model.hook_of(config) for config in configs] == [0, 1, 2, 3]
    for config, hook, activations in zip(
        configs, model.hooks, model.all_activations(ids_of()), strict=True
    ):
        alone = LanguageModel.load(config)
        assert hook == alone.hooks[0]
        assert torch.equal(activations, alone.activations(ids_of()))
    assert torch.equal(model.activations(ids_of()), model.all_activations(ids_of())[0])


def test_two_names_of_one_module_are_one_hook(model_folders):
    folder = str(model_folders["gemma2"])
    by_path = ModelConfig(name=folder, hook_point="model.layers.1")
    as_input = ModelConfig(name=folder, hook_point="model.layers.1", hook_io="input")
    model = LanguageModel.load(ModelConfig(name=folder, layer=1), also=[by_path, as_input])
    assert [hook.name for hook in model.hooks] == ["model.layers.1", "model.layers.1"]
    assert (model.hook_of(by_path), model.hook_of(as_input)) == (0, 1)
    below = LanguageModel.load(ModelConfig(name=folder, layer=0))
    assert torch.equal(model.all_activations(ids_of())[1], below.activations(ids_of()))


def test_hooks_of_different_widths_are_read_together(model_folders):
    folder = str(model_folders["gemma2"])
    inner = ModelConfig(name=folder, hook_point="model.layers.1.mlp.up_proj")
    model = LanguageModel.load(ModelConfig(name=folder, layer=1), also=[inner])
    assert [hook.d_in for hook in model.hooks] == [32, 48]
    assert [a.shape[-1] for a in model.all_activations(ids_of())] == [32, 48]


def test_only_the_layers_up_to_the_deepest_hook_are_loaded_and_run(model_folders):
    folder = str(model_folders["gemma2"])
    deeper = ModelConfig(name=folder, hook_point="model.layers.2.mlp.up_proj")
    model = LanguageModel.load(ModelConfig(name=folder, layer=0), also=[deeper])
    assert len(model._model.layers) == 3
    ran = []
    for layer in (1, 2):
        down = model._model.layers[layer].mlp.down_proj
        down.register_forward_hook(lambda *_, layer=layer: ran.append(layer))
    model.all_activations(ids_of())
    assert ran == [1]
    model.activations(ids_of())
    assert ran == [1]


@pytest.mark.parametrize("architecture", HOOKED)
def test_each_hook_is_spliced_at_its_own_module(model_folders, architecture):
    folder = str(model_folders[architecture])
    configs = [ModelConfig(name=folder, layer=2), ModelConfig(name=folder, layer=0, site="mlp_out")]
    both = LanguageModel.load(configs[0], also=configs[1:]).full()
    for hook, config in enumerate(configs):
        alone = LanguageModel.load(config).full()
        spliced = both.cross_entropy(ids_of(), torch.zeros_like, hook=hook)
        assert spliced == alone.cross_entropy(ids_of(), torch.zeros_like)
        assert spliced != both.cross_entropy(ids_of())


def test_a_module_that_does_not_run_is_refused(model_folders):
    config = ModelConfig(name=str(model_folders["gemma2"]), hook_point="model.layers")
    with pytest.raises(ConfigError, match=r"'layers' is a module that the model does not run"):
        LanguageModel.load(config)


@pytest.mark.parametrize("architecture", HOOKED)
def test_cross_entropy_equals_the_models_own_logits(model_folders, architecture):
    folder, ids = model_folders[architecture], ids_of()
    splice = LanguageModel.load(ModelConfig(name=str(folder), layer=1)).full()
    with torch.no_grad():
        logits = whole(folder)(ids, use_cache=False).logits
    counted = (ids[:, :-1] != 2) & (ids[:, :-1] != 1) & (ids[:, :-1] != 0)
    expected = cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted], reduction="sum")
    total, count = splice.cross_entropy(ids)
    assert count == int(counted.sum())
    assert total == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("architecture", HOOKED)
def test_splicing_the_models_own_activations_changes_nothing(model_folders, architecture, site):
    config = ModelConfig(name=str(model_folders[architecture]), layer=1, site=site)
    splice = LanguageModel.load(config).full()
    plain, _ = splice.cross_entropy(ids_of())
    spliced, _ = splice.cross_entropy(ids_of(), lambda x: x)
    assert spliced == pytest.approx(plain, rel=1e-6)


def test_splicing_replaces_only_ordinary_positions(model_folders):
    folder, ids = model_folders["gemma2"], ids_of()
    splice = LanguageModel.load(ModelConfig(name=str(folder), layer=1)).full()
    handed = []

    def zero(x: torch.Tensor) -> torch.Tensor:
        handed.append(len(x))
        return torch.zeros_like(x)

    total, _ = splice.cross_entropy(ids, zero)
    ordinary = (ids != 2) & (ids != 1)
    assert handed == [int(ordinary.sum())]

    model = whole(folder)

    def ablate(_module, _inputs, output):
        return torch.where(ordinary[..., None], 0.0, output)

    model.model.layers[1].register_forward_hook(ablate)
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits
    counted = ordinary[:, :-1]
    expected = cross_entropy(logits[:, :-1][counted], ids[:, 1:][counted], reduction="sum")
    assert total == pytest.approx(expected.item(), rel=1e-5)


def test_the_unembedding_is_the_linear_part_of_final_norm_and_head(model_folders):
    folder = model_folders["gemma2"]
    prefix = LanguageModel.load(ModelConfig(name=str(folder), layer=1))
    model = whole(folder)
    direction = torch.randn(32)
    # Gemma's norm multiplies a vector of unit mean square by 1 + weight.
    unit = direction / direction.pow(2).mean().sqrt()
    expected = model.lm_head(model.model.norm(unit)).detach()
    torch.testing.assert_close(prefix.unembedding() @ unit, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("architecture", HOOKED)
def test_the_unembedding_is_the_same_from_the_head_alone_and_from_the_whole_model(
    model_folders, architecture
):
    model = LanguageModel.load(ModelConfig(name=str(model_folders[architecture]), layer=1))
    assert torch.equal(model.unembedding(), model.unembedding(causal_lm=model.full().model))


def test_a_hook_of_another_width_than_the_residual_stream_has_no_unembedding(model_folders):
    folder = str(model_folders["gemma2"])
    inner = ModelConfig(name=folder, hook_point="model.layers.1.mlp.up_proj")
    model = LanguageModel.load(ModelConfig(name=folder, layer=1), also=[inner])
    assert model.unembedding(0) is not None
    assert model.unembedding(1) is None


def test_a_literal_bos_in_a_document_is_text(model_folders):
    model = LanguageModel.load(ModelConfig(name=str(model_folders["gemma2"]), layer=0))
    ids = model.tokenizer.encode("a <bos> b <eos>", add_special_tokens=False).ids
    assert not set(ids) & {0, 1, 2, 3}
    assert model.tokenizer.decode(ids) == "a <bos> b <eos>"


def test_a_missing_layer_is_named_with_the_existing_range(model_folders):
    with pytest.raises(ConfigError, match=r"Layer 9 does not exist; .* has layers 0 to 3"):
        LanguageModel.load(ModelConfig(name=str(model_folders["gemma2"]), layer=9))


def test_a_missing_hook_point_is_named_with_the_existing_modules(model_folders):
    config = ModelConfig(name=str(model_folders["gemma2"]), hook_point="model.layers.1.attention")
    with pytest.raises(ConfigError, match=r"is not a module of .*embed_tokens, layers, norm"):
        LanguageModel.load(config)


def test_a_missing_gpu_is_refused(model_folders):
    config = ModelConfig(name=str(model_folders["gemma2"]), layer=0, device="cuda:7")
    with pytest.raises(ConfigError, match="'cuda:7' does not exist"):
        LanguageModel.load(config)


def test_a_folder_without_weights_is_refused(model_folders, tmp_path: Path):
    (tmp_path / "config.json").write_bytes((model_folders["gemma2"] / "config.json").read_bytes())
    for file in model_folders["gemma2"].glob("tokenizer*.json"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(UserError, match="does not hold a complete model"):
        LanguageModel.load(ModelConfig(name=str(tmp_path), layer=0))


def test_an_uncached_model_in_offline_mode_is_refused_with_the_reason():
    with pytest.raises(UserError, match="not in the local cache and HF_HUB_OFFLINE is set"):
        LanguageModel.load(ModelConfig(name="nobody/has-this-model", layer=0))


@pytest.mark.parametrize(
    ("architecture", "dtype", "warned"),
    [("gemma2", "float16", True), ("gemma2", "bfloat16", False), ("llama", "float16", False)],
)
def test_only_a_gemma_model_in_float16_has_a_warning(model_folders, architecture, dtype, warned):
    config = ModelConfig(name=str(model_folders[architecture]), layer=1, dtype=dtype)
    model = LanguageModel.load(config)
    assert model.activations(ids_of()).dtype == getattr(torch, dtype)
    assert ["become infinite" in notice for notice in model.notices] == [True] * warned
