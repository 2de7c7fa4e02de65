import json
from contextlib import nullcontext
from pathlib import Path

import pytest

from sae_engine import model_files
from sae_engine.errors import ConfigError
from sae_engine.preflight import check_config
from sae_engine.presets import presets, resolve_config


@pytest.mark.parametrize("name", presets())
def test_every_preset_passes(name: str):
    check_config(presets()[name].config)


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        ({"model": {"layer": 6}}, "model.layer", "Layer 6 does not exist; .* layers 0 to 5"),
        ({"model": {"name": "/no/such/model"}}, "model.name", "no folder '/no/such/model'"),
        (
            {"data": {"dataset": "/no/such.txt"}},
            "data.dataset",
            r"no file or folder '/no/such\.txt'",
        ),
        (
            {"sae": {"expansion_factor": 1, "k": 200}},
            "sae.k",
            r"sae\.k = 200 is larger than the 192 latents",
        ),
        ({"sae": {"pretrained": "/no/such"}}, "sae.pretrained", "no file or folder '/no/such'"),
        ({"sae": {"pretrained": "best_model.pt"}}, "sae.pretrained", "There is no file or folder"),
    ],
)
def test_a_mistake_is_refused_with_field_and_remedy(overrides, field, words):
    with pytest.raises(ConfigError, match=words) as caught:
        check_config(resolve_config("tiny", overrides))
    assert caught.value.problems[0].field == field


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", '{"body": "x"}\n', r"no column 'text' .* columns are: body"),
        ("a.jsonl", "[1]\n", "Line 1 of .* is not a JSON object"),
        ("a.txt", "\n\n  \n", "holds no text"),
        ("a.csv", "a,b\n1,2\n", r"no column 'text' .* columns are: a, b"),
    ],
)
def test_a_file_without_readable_text_is_refused(tmp_path: Path, name, content, words):
    (tmp_path / name).write_text(content)
    config = resolve_config("tiny", {"data": {"dataset": str(tmp_path / name)}})
    with pytest.raises(ConfigError, match=words):
        check_config(config)


def test_a_folder_without_text_files_is_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="holds no text"):
        check_config(resolve_config("tiny", {"data": {"dataset": f"{tmp_path}/"}}))


def model_of(folder: Path, described: dict, tokenizer: dict | None = None) -> Path:
    """A folder with a model's descriptions and no weights."""
    (folder / "config.json").write_text(json.dumps(described))
    if tokenizer is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        added = [{"id": id_, "content": text} for text, id_ in tokenizer["added"].items()]
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": added}))
    return folder


@pytest.mark.parametrize(
    ("described", "field", "words"),
    [
        ({"n_positions": 128}, "data.ctx_len", r"256 tokens exceed the 128 positions of .*; lower"),
        ({"max_position_embeddings": 255}, "data.ctx_len", "exceed the 255 positions"),
        ({"text_config": {"max_position_embeddings": 64}}, "data.ctx_len", "the 64 positions"),
        ({"is_encoder_decoder": True}, "model.name", "not an encoder or an encoder-decoder"),
        ({"architectures": ["RobertaForMaskedLM"]}, "model.name", "use a decoder-only language"),
        ({"text_config": {"num_hidden_layers": 2}}, "model.layer", "has layers 0 to 1"),
        *(
            (
                {"quantization_config": {"quant_method": method}},
                "model.name",
                f"quantized with {method}, which needs the package .*pip install .*{package}",
            )
            for method, package in [
                ("gptq", "optimum gptqmodel"),
                ("awq", "gptqmodel"),
                ("bitsandbytes", "bitsandbytes"),
            ]
        ),
    ],
)
def test_a_local_model_that_cannot_be_used_is_refused(
    tmp_path: Path, monkeypatch, described, field, words
):
    monkeypatch.setattr(model_files, "find_spec", lambda name: None)  # nothing is installed
    overrides = {"model": {"name": str(model_of(tmp_path, described))}}
    with pytest.raises(ConfigError, match=words) as caught:
        check_config(resolve_config("tiny", overrides))
    assert caught.value.problems[0].field == field


def test_a_quantized_model_passes_if_the_package_is_installed(tmp_path: Path, monkeypatch):
    described = {"quantization_config": {"quant_method": "awq"}}
    monkeypatch.setattr(model_files, "find_spec", {"gptqmodel": object()}.get)
    check_config(resolve_config("tiny", {"model": {"name": str(model_of(tmp_path, described))}}))


@pytest.mark.parametrize(
    ("tokenizer", "words"),
    [
        ({"bos_token": "<s>", "added": {"<s>": 4096}}, r"its bos token has id 4,096, but .*4,095"),
        ({"eos_token": {"content": "</s>"}, "added": {"</s>": 5000}}, "its eos token has id 5,000"),
        ({"bos_token": "<s>", "pad_token": "[PAD]", "added": {"<s>": 1, "[PAD]": 4096}}, None),
        ({"added": {}}, None),
    ],
)
def test_a_special_token_without_an_embedding_is_refused(tmp_path: Path, tokenizer, words):
    folder = model_of(tmp_path, {"vocab_size": 4096}, tokenizer)
    config = resolve_config("tiny", {"model": {"name": str(folder)}})
    with pytest.raises(ConfigError, match=words) if words else nullcontext():
        check_config(config)


def test_epochs_of_an_unbounded_stream_are_refused():
    config = resolve_config("gemma-2-2b", {"train": {"num_epochs": 1}})
    with pytest.raises(ConfigError, match=r"length is not known; give train\.total_tokens"):
        check_config(config)


def test_the_preset_of_the_original_repository_is_unchanged():
    config = resolve_config("gemma-2-2b-seed", {})
    check_config(config)
    assert (config.model.name, config.hook_name) == ("google/gemma-2-2b", "layer 15 resid_post")
    assert (config.sae.num_latents(2304), config.sae.k) == (9216, 128)
    assert config.sae.tied_weights
    assert config.sae.normalize_decoder
    assert (config.data.num_samples, config.train.num_epochs) == (100_000, 5)
