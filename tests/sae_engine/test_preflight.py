from pathlib import Path

import pytest

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
