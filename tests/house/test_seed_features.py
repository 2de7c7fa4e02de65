"""The table of the seed's features names fields, flags, files and presets that there are."""

import re

import pytest

from backend.cli.main import main
from sae_engine.files import RunFolder
from sae_engine.presets import presets
from sae_engine.schema.fields import field_names
from tests.house.repository import ROOT

_TABLE = (ROOT / "docs/seed-features.md").read_text("utf-8")
_HERE = "\n".join(line.split(" | ", 1)[1] for line in _TABLE.splitlines() if line.startswith("| "))
"""The column that speaks of this project."""


def test_every_field_it_names_is_in_the_configuration() -> None:
    named = set(re.findall(r"`((?:model|data|sae|train|index)\.[a-z_0-9]+)`", _HERE))
    named |= set(re.findall(r"--grid ([a-z_.]+)=", _HERE))
    assert len(named) > 25
    assert named - {RunFolder("").sae.name} <= set(field_names())


def test_every_option_it_names_is_one_of_train(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    options = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    commands = re.findall(r"`((?:sae-workbench train )?--[^`]+)`", _HERE)
    named = {option for command in commands for option in re.findall(r"--[a-z-]+", command)}
    assert len(named) >= 7
    assert named <= options


@pytest.mark.parametrize(
    "file", sorted(set(re.findall(r"`((?:sae_engine|tests)/[\w/.]+)`", _HERE)))
)
def test_every_file_it_names_exists(file: str) -> None:
    assert (ROOT / file).is_file()


def test_the_presets_it_names_exist() -> None:
    assert {"gemma-2-2b", "gemma-2-2b-seed"} <= set(re.findall(r"[a-z0-9-]+", _HERE)) & set(
        presets()
    )


@pytest.mark.parametrize(
    "option",
    [
        *("input_dim", "hidden_dim", "tied_weights", "normalize_decoder", "model_name"),
        *("layer_name", "dataset_name", "num_samples", "max_length", "num_epochs", "batch_size"),
        *("learning_rate", "l1_lambda", "eval_every", "save_every", "use_wandb", "wandb_project"),
        *("--quick-test", "--load-checkpoint", "--eval-only", "--save-activations"),
        *("--load-activations", "uv sync", "pip install -e .", "gradient checkpointing"),
    ],
)
def test_every_option_of_the_seed_has_its_line(option: str) -> None:
    there = [line.split(" | ", 1)[0] for line in _TABLE.splitlines() if line.startswith("| ")]
    assert any(option in cell for cell in there)
