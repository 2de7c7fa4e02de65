import pytest
import yaml

from sae_engine.errors import ConfigError
from sae_engine.presets import get_preset, presets, resolve_config
from sae_engine.presets.foreign_names import CALLED_HERE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import field_names
from sae_engine.schema.records import METRICS


def test_every_metric_has_a_title_and_help():
    for name, metric in METRICS.items():
        assert metric.title, name
        assert metric.help.endswith("."), name


@pytest.mark.parametrize("name", presets())
def test_a_preset_is_unchanged_by_a_round_trip_through_yaml(name: str):
    config = presets()[name].config
    text = yaml.safe_dump(config.model_dump(mode="json"))
    assert RunConfig.model_validate(yaml.safe_load(text)) == config


def test_overrides_are_applied_to_a_preset():
    config = resolve_config("tiny", {"sae": {"k": 8}, "train": {"lr": 0.01}})
    assert (config.sae.k, config.sae.d_sae, config.train.lr) == (8, 4096, 0.01)


def test_an_override_of_one_of_two_exclusive_fields_removes_the_other():
    config = resolve_config("tiny", {"sae": {"expansion_factor": 4}, "train": {"num_epochs": 2}})
    assert (config.sae.d_sae, config.sae.expansion_factor) == (None, 4)
    assert (config.train.total_tokens, config.train.num_epochs) == (None, 2)


@pytest.mark.parametrize(
    ("overrides", "field", "words"),
    [
        ({"sae": {"kk": 3}}, "sae.kk", r"Unknown setting; did you mean sae\.k\?"),
        ({"sae": {"k": 5000}}, "sae.k", r"sae\.k = 5000 is larger than sae\.d_sae = 4096"),
        ({"sae": {"k": 0}}, "sae.k", r"at least 1 \(got 0\)"),
        ({"train": {"lr": "fast"}}, "train.lr", r"'fast' is not a number"),
        ({"model": {"site": "resid"}}, "model.site", "resid_post"),
        ({"model": {"device": "tpu"}}, "model.device", "got 'tpu'"),
        ({"sae": {"d_sae": 8, "expansion_factor": 2}}, "sae", "not both"),
        ({"sae": {"tied_weights": True}}, "sae.tied_weights", r"needs sae\.normalize_decoder"),
        ({"train": {"lr": float("nan")}}, "train.lr", "finite"),
        ({"data": {"mixture": []}}, "data.mixture", "Write a list of 1 to 32 datasets"),
        ({"data": {"mixture": "a.txt"}}, "data.mixture", "Write a list of 1 to 32 datasets"),
        ({"data": {"mixture": ["a.txt"] * 33}}, "data.mixture", "Write a list of 1 to 32"),
        ({"data": {"mixture": ["a.txt"]}}, "data.mixture.0", r"dictionary.*got 'a\.txt'"),
        ({"data": {"mixture": [{"dataset": "a"}]}}, "data.mixture.0.weight", "required"),
        (
            {"data": {"mixture": [{"dataset": "a", "weight": 0}]}},
            "data.mixture.0.weight",
            "above 0",
        ),
        (
            {"data": {"mixture": [{"dataset": "a", "weight": 1, "column": "x"}]}},
            "data.mixture.0.column",
            "Unknown setting",
        ),
        (
            {
                "data": {"mixture": [{"dataset": "a", "weight": 1}]},
                "train": {"num_epochs": 1},
            },
            "train.num_epochs",
            r"give train\.total_tokens",
        ),
    ],
)
def test_an_invalid_value_is_an_error_that_names_its_field(overrides, field, words):
    with pytest.raises(ConfigError, match=words) as caught:
        resolve_config("tiny", overrides)
    assert caught.value.problems[0].field == field


def test_fields_of_other_trainers_are_errors_that_name_ours():
    theirs = {
        "model": {"input_dim": 2304, "hidden_dim": 9216, "k": 128, "tied_weights": True},
        "data": {"model_name": "google/gemma-2-2b", "layer_name": "model.layers.15"},
        "training": {"learning_rate": 1e-3, "batch_size": 256, "use_wandb": True, "grad_clip": 1},
    }
    with pytest.raises(ConfigError) as caught:
        resolve_config(None, theirs)
    answers = {problem.field: problem.message for problem in caught.value.problems}
    assert set(answers) == {f"{section}.{key}" for section in theirs for key in theirs[section]}
    assert answers["model.hidden_dim"] == "It is called sae.d_sae here."
    assert answers["training.learning_rate"] == "It is called train.lr here."
    assert answers["model.input_dim"].startswith("Leave it out")
    assert answers["training.grad_clip"] == "Unknown setting; did you mean train.grad_clip?"


def test_the_names_given_for_foreign_fields_exist():
    assert set(CALLED_HERE.values()) <= set(field_names())


def test_an_empty_unknown_section_is_refused():
    with pytest.raises(ConfigError, match="training: Unknown setting"):
        resolve_config(None, {"training": {}})


def test_an_unknown_preset_is_an_error_that_lists_all_presets():
    with pytest.raises(ConfigError, match="no preset 'big'; choose one of quick-test, tiny"):
        get_preset("big")
