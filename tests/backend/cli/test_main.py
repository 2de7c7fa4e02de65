"""The console script: its options, what it trains, what it prints."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from backend.cli.fields import add_fields, field_values
from backend.cli.main import main
from backend.cli.options import request_from
from sae_engine.errors import UserError
from sae_engine.presets import presets
from sae_engine.schema.config import RunConfig
from sae_engine.schema.fields import field_specs
from sae_engine.schema.runs import RunCreate


def parsed(*arguments: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_fields(parser)
    return field_values(parser.parse_args(arguments))


def test_flags_are_parsed_by_the_type_of_their_field() -> None:
    flags = ["--sae.k", "64", "--train.lr=3e-4", "--data.subset", "null", "--seed", "7"]
    flags += ["--data.streaming=false", "--data.dataset=12", "--model.name=-"]
    flags += ["--data.mixture", '[{"dataset": "a.txt", "weight": 2}]']
    assert parsed(*flags) == {
        "sae.k": 64,
        "train.lr": 3e-4,
        "data.subset": None,
        "data.streaming": False,
        "data.dataset": "12",
        "data.mixture": [{"dataset": "a.txt", "weight": 2}],
        "seed": 7,
        "model.name": "-",
    }


def test_every_field_is_an_option_with_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for path, spec in field_specs().items():
        assert f"--{path} " in printed
        assert path == "name" or spec.help.split()[0] in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--sae.kk", "8"], "sae.kk: Unknown setting; did you mean sae.k?"),
        (["--sae.k", "no"], "sae.k: 'no' is not a whole number"),
        (["--oops"], "unrecognized argument: --oops"),
        (["--sae.k"], "expected one argument"),
        (["--sae.k", "--sae.d_sae", "8"], "expected one argument"),
        (["--training.learning_rate", "1"], "It is called train.lr here"),
    ],
)
def test_a_wrong_option_is_explained_in_one_sentence(
    tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["train", "tiny", "--data-dir", str(tmp_path), *arguments])
    except SystemExit as exit_:
        code = exit_.code
    assert code == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--limit", "--min-count"])
@pytest.mark.parametrize(
    ("number", "words"),
    [("0", "must be at least 1 (got 0)"), ("-1", "must be"), ("x", "invalid int")],
)
def test_a_lookup_counts_from_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str, number: str, words: str
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["lookup", "run", "text", option, number, "--data-dir", str(tmp_path)])
    assert exit_info.value.code == 2
    assert f"argument {option}: {words}" in capsys.readouterr().err


def ask(**given: Any) -> RunCreate:
    return request_from(**({"recipe": None, "path": None, "values": {}, "name": None} | given))


def test_flags_override_the_file_and_the_file_overrides_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"preset": "quick-test", "sae": {"k": 3, "d_sae": 99}}))
    request = ask(path=path, values={"sae.k": 5})
    assert request.preset == "quick-test"
    assert request.config == {"sae": {"k": 5, "d_sae": 99}}
    assert ask(path=path, recipe="tiny").preset == "tiny"
    assert ask().preset == "tiny"


def test_a_bare_configuration_file_needs_no_recipe(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(presets()["tiny"].config.model_dump(mode="json")))
    request = ask(path=path)
    assert request.preset is None
    assert RunConfig.model_validate(request.config) == presets()["tiny"].config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "Cannot read"),
        ("a: [", "not valid YAML"),
        ("- a", "holds a list"),
        ("sae: 5", r"sae: This is a section with fields, such as sae\..* \(got 5\)"),
        ("model: [1]", "model: This is a section"),
        ("1: x", "1: Unknown setting"),
        ("sae: {2: 3}", "sae.2: Unknown setting"),
        ("train: {[a]: 3}", "not valid YAML"),
    ],
)
def test_a_file_that_is_not_a_configuration_is_refused(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / "config.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words):
        ask(path=path)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--load-checkpoint", "best_model.pt"], "checkpoints are safetensors"),
        (["--load-checkpoint", "no/where"], "There is no checkpoint or run folder 'no/where'"),
        (["--load-checkpoint", "nowhere"], "There is no run 'nowhere'"),
        (["--run-dir", "."], "'.' is not empty"),
        (["--eval-only"], "--eval-only needs an SAE"),
        (["--grid", "sae.k"], "has no '='; write a line such as sae.k = 16, 32"),
        (["--grid", "sae.kk=1,2"], "Unknown setting 'sae.kk'"),
        (["--grid", "sae.k=4,4"], "A value is given twice"),
        (["--grid", "sae.k=4,8", "--run-dir", "x"], "--grid and --run-dir exclude each other"),
        (
            ["--save-activations", "x", "--grid", "sae.k=4,8"],
            "--save-activations and --grid exclude each other",
        ),
        (["--load-activations", "acts.pt"], "activation files are .safetensors"),
    ],
)
def test_a_wrong_option_of_train_is_reported(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "something").touch()
    assert main(["train", "--quick-test", *arguments, "--data-dir", str(tmp_path / "data")]) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "nope"], "There is no preset 'nope'"),
        (["train", "tiny", "--sae.kk", "1"], "did you mean sae.k?"),
        (["train", "tiny", "--sae.k", "5000"], "lower k or raise d_sae"),
        (["train", "tiny", "--model.layer", "99"], "Layer 99 does not exist"),
        (["train", "--sae.k", "5000", "tiny"], "lower k or raise d_sae"),
        (["train", "--quick-test", "--model.layer", "98"], "Layer 98 does not exist"),
        (["train", "--model.layer=97", "--name", "x", "--quick-test"], "Layer 97 does not exist"),
        (["lookup", "nobody", "the"], "There is no run 'nobody'"),
    ],
)
def test_a_wrong_command_is_reported_and_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main([*arguments, "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert words in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sae:\nmodel:\ntrain: {lr: 0}", "train.lr"),
        ("sae: text", "sae: This is a section with fields"),
        ("sae: {pretrained: 5}", "sae.pretrained: 5 is not text"),
        ("sae: {pretrained: [a]}", "sae.pretrained: ['a'] is not text"),
        ("null: 5", "None: Unknown setting"),
        ("name: {a: 1}", "name"),
        ("preset: 5", "preset"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--sae.k", "8"], ["--grid", "sae.k=4,8"]])
def test_a_configuration_file_with_a_wrong_section_or_name_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str, words: str, more: list[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(content)
    assert main(["train", "--config", str(path), *more, "--data-dir", str(tmp_path)]) == 2
    assert words in capsys.readouterr().err


def test_an_unknown_argument_of_other_commands_is_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["runs", "--nope"])
    assert exit_info.value.code == 2
    assert "--nope" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("backend.app", {"torch", "nnsight", "transformers", "streamlit", "frontend"}),
        ("backend.jobs.supervisor", {"torch", "nnsight", "transformers", "streamlit", "fastapi"}),
        ("backend.jobs.worker", {"torch", "nnsight", "transformers", "streamlit", "fastapi"}),
        ("backend.jobs.worker", {"alembic", "uvicorn", "httpx"}),
        ("backend.cli.main", {"torch", "sqlalchemy", "fastapi", "streamlit", "rich"}),
        ("backend.serve", {"torch", "frontend"}),
    ],
)
def test_importing_a_module_imports_nothing_heavy(module: str, absent: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not absent & set(done.stdout.split())


@pytest.mark.parametrize("arguments", [["runs"], ["lookup", "a", "b"], ["train", "quick-test"]])
@pytest.mark.parametrize("folder", ["/proc/none", "{file}/below"])
def test_a_folder_that_cannot_be_used_is_named_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], folder: str
) -> None:
    (tmp_path / "file").touch()
    folder = folder.format(file=tmp_path / "file")
    assert main([*arguments, "--data-dir", folder]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert folder.removesuffix("/below") in error
