"""Training from files equals training on the text they were made from; bad files are reported."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_engine.activations import files as activation_files
from sae_engine.activations import stream as activations
from sae_engine.activations import writer
from sae_engine.activations.feed import FileFeed
from sae_engine.activations.files import FileSource, HeldoutFiles, open_activation_set
from sae_engine.activations.writer import save_activations
from sae_engine.errors import ConfigError, UserError
from sae_engine.files import RunFolder
from sae_engine.model.language_model import LanguageModel
from sae_engine.preflight import check_config
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import NoticeRecord, PhaseRecord, PlanRecord
from sae_engine.text.packing import Cursor
from sae_engine.training.loop import train
from tests.sae_engine.training.test_loop import collected, config_of, losses


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "TOKENS_PER_BLOCK", 512)
    monkeypatch.setattr(activation_files, "TOKENS_PER_BLOCK", 512)
    monkeypatch.setattr(writer, "TOKENS_PER_FILE", 900)


@pytest.fixture
def config(model_folders) -> RunConfig:
    return config_of(model_folders["gemma2"])


def from_files(config: RunConfig, folder: Path) -> RunConfig:
    data = config.data.model_copy(update={"activations": str(folder)})
    return config.model_copy(update={"data": data})


def write(
    path: Path,
    tokens: int,
    d_in: int = 8,
    metadata: dict[str, str] | None = None,
    **more: torch.Tensor,
) -> Path:
    values = torch.arange(tokens, dtype=torch.float32)[:, None].repeat(1, d_in)
    save_file({"activations": values} | more, path, metadata=metadata)
    return path


def test_training_from_saved_files_equals_training_on_the_text(config: RunConfig, tmp_path: Path):
    saved = tmp_path / "saved"
    records = collected(save_activations(config, saved))
    assert "--load-activations" in records[-1].message
    assert len(list(saved.glob("train-*.safetensors"))) > 1
    live, filed = RunFolder(tmp_path / "live"), RunFolder(tmp_path / "filed")
    read = collected(train(config, live))
    again = collected(train(from_files(config, saved), filed))
    assert losses(again) == losses(read)
    loading = PhaseRecord(phase="loading the whole language model")
    assert [loading in found for found in (read, again)] == [True, False]
    for name, tensor in load_file(live.sae).items():
        assert torch.equal(load_file(filed.sae)[name], tensor)
    assert filed.snapshots() == live.snapshots()
    step = live.snapshots()[-1]
    for name in ("token_ids.npy", "row_starts.npy", "text_breaks.npy"):
        mine, theirs = (f.feature_index(step) / name for f in (filed, live))
        assert mine.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize(("dtype", "stored"), [("float16", "F16"), ("bfloat16", "BF16")])
def test_saved_files_fit_together_in_every_data_type(
    config: RunConfig, tmp_path: Path, dtype: str, stored: str
):
    settings = {"dtype": dtype}
    config = config.model_copy(update={"model": config.model.model_copy(update=settings)})
    collected(save_activations(config, tmp_path / "saved"))
    assert open_activation_set(tmp_path / "saved").dtype == stored


@pytest.mark.parametrize("kind", ["of the model", "of the text"])
def test_notices_on_the_model_and_the_text_are_reported_while_saving_and_training(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
):
    words = "This model is strange." if kind == "of the model" else "1 row was left out"
    if kind == "of the model":
        load = LanguageModel.load

        def strange(*args: object, **kwargs: object) -> LanguageModel:
            model = load(*args, **kwargs)  # pyright: ignore[reportArgumentType]
            model.notices.append(words)
            return model

        monkeypatch.setattr(LanguageModel, "load", strange)
    rows = [json.dumps({"text": f"{n} and {n * n} are numbers"}) for n in range(900)]
    path = tmp_path / "text.jsonl"
    path.write_text("\n".join([*rows[:40], "no JSON", *rows[40:]]))
    data = config.data.model_copy(update={"dataset": str(path)})
    config = config.model_copy(update={"data": data})
    saved = collected(save_activations(config, tmp_path / "saved"))
    notices = [r.message for r in saved if isinstance(r, NoticeRecord)]
    assert sum(words in notice for notice in notices) == 1
    assert "--load-activations" in notices[-1]
    records = collected(train(from_files(config, tmp_path / "saved"), RunFolder(tmp_path / "run")))
    notices = [r.message for r in records if isinstance(r, NoticeRecord)]
    assert notices.count(words) == (kind == "of the model")


def test_resuming_from_files_is_exact(config: RunConfig, tmp_path: Path):
    collected(save_activations(config, tmp_path / "saved"))
    config = from_files(config, tmp_path / "saved")
    whole, parts = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "parts")
    expected = losses(collected(train(config, whole)))
    for record in train(config, parts):
        if getattr(record, "step", 0) == 15:
            break
    rest = collected(train(config, parts, resume=True))
    assert min(losses(rest)) == 13
    assert losses(rest).items() <= expected.items()
    assert torch.equal(load_file(parts.sae)["W_enc"], load_file(whole.sae)["W_enc"])


def test_files_without_token_ids_train_with_a_notice_that_there_are_no_features(
    config: RunConfig, tmp_path: Path
):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5000, 24, generator=generator).to(torch.bfloat16)
    save_file({"activations": values}, tmp_path / "a.safetensors")
    folder = RunFolder(tmp_path / "run")
    records = collected(train(from_files(config, tmp_path / "a.safetensors"), folder))
    assert next(r for r in records if isinstance(r, PlanRecord)).d_in == 24
    assert any(isinstance(r, NoticeRecord) and "no token ids" in r.message for r in records)
    assert records[-1].reason == "finished"
    assert folder.snapshots() == []
    assert "eval_fvu" in [r for r in records if r.kind == "metrics"][-1].values


def test_epochs_count_the_tokens_of_the_files(config: RunConfig, tmp_path: Path):
    write(tmp_path / "a.safetensors", 2000)
    tree = config.model_dump() | {}
    tree["train"] |= {"total_tokens": None, "num_epochs": 3}
    config = from_files(RunConfig.model_validate(tree), tmp_path / "a.safetensors")
    records = collected(train(config, RunFolder(tmp_path / "run")))
    plan = next(r for r in records if isinstance(r, PlanRecord))
    assert plan.total_steps == 3 * 1800 // 64  # a tenth is held out


def test_an_epoch_has_every_training_token_once_and_no_held_out_token(tmp_path: Path):
    for n, tokens in enumerate((700, 1300, 600)):
        path = tmp_path / f"{n}.safetensors"
        values = torch.arange(tokens, dtype=torch.float32)[:, None] + 10_000 * n
        save_file({"activations": values}, path)
    files = open_activation_set(tmp_path)
    assert files.num_train_tokens == 2340
    source = FileSource(files, Cursor(), torch.device("cpu"))
    blocks = []
    while source.cursor.epoch == 0:
        blocks.append(source.next_block()[0])
    seen = torch.cat(blocks).flatten().tolist()
    held = HeldoutFiles(files, 10**6).read(0, 10**6).flatten().tolist()
    assert seen + held == [i + 10_000 * n for n, t in enumerate((700, 1300, 600)) for i in range(t)]
    assert max(map(len, blocks)) <= 512
    again = FileSource(files, Cursor(0, 1, 512), torch.device("cpu")).next_block()[0]
    assert again[0].item() == 10_512


def test_blocks_have_the_same_rows_though_some_hold_nothing(tmp_path: Path):
    lengths = [3, 0, 0, 2, 0, 1, 4, 0, 5]  # two rows to a block, as `ctx_len` says
    starts = torch.tensor([0, *np.cumsum(lengths)])
    write(tmp_path / "train.safetensors", 15, metadata={"ctx_len": "256"}, row_starts=starts)
    write(tmp_path / "heldout.safetensors", 9)
    files = open_activation_set(tmp_path)
    source = FileSource(files, Cursor(), torch.device("cpu"))
    for number, size in enumerate([3, 2, 1, 4, 5, 3]):
        at = source.cursor
        [block] = source.next_block()
        assert len(block) == size
        [again] = FileSource(files, at, torch.device("cpu")).next_block()
        assert torch.equal(again, block)
        assert at.epoch == (number == 5)


def test_files_named_heldout_are_never_trained_on(tmp_path: Path):
    write(tmp_path / "heldout-0.safetensors", 50)
    write(tmp_path / "part-0.safetensors", 100)
    files = open_activation_set(tmp_path)
    assert files.num_train_tokens == 100
    assert [part.path.name for part in files.heldout] == ["heldout-0.safetensors"]


def test_held_out_rows_are_whole(tmp_path: Path):
    starts = torch.tensor([0, 30, 60, 90])
    write(tmp_path / "heldout-0.safetensors", 90, row_starts=starts, token_ids=torch.arange(90))
    write(tmp_path / "part.safetensors", 100, token_ids=torch.arange(100))
    held = HeldoutFiles(open_activation_set(tmp_path), 40)
    assert held.num_tokens == 60
    assert held.row_starts.tolist() == [0, 30, 60]
    assert np.array_equal(held.token_ids, np.arange(60))
    assert len(held.read(0, 10)) == 30
    assert held.text_breaks is None


@pytest.mark.parametrize("in_memory", [1, 55, 200])
def test_held_out_tokens_that_are_not_in_memory_are_read_from_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: int
):
    monkeypatch.setattr(activation_files, "TOKENS_PER_FORWARD", 16)
    monkeypatch.setattr(activation_files, "TOKENS_PER_BLOCK", 25)
    for number, tokens in enumerate((60, 0, 90, 50)):
        starts = torch.arange(0, tokens + 1, 10)
        write(tmp_path / f"heldout-{number}.safetensors", tokens, row_starts=starts)
    write(tmp_path / "part.safetensors", 100)
    files = open_activation_set(tmp_path)
    whole = HeldoutFiles(files, 200).read(0, 200)
    assert len(whole) == 200
    held = HeldoutFiles(files, 200, num_in_memory=in_memory)
    assert torch.equal(held.read(0, in_memory), whole[: -(-in_memory // 10) * 10])
    for wanted in (5, 60, 101, 200, 999):
        parts = [part for [part] in held.parts(wanted)]
        assert max(map(len, parts)) <= 16
        assert torch.equal(torch.cat(parts), whole[: -(-wanted // 10) * 10])


def test_breaks_of_the_text_are_read_from_all_held_out_files(tmp_path: Path):
    for n, breaks in enumerate([[1, 4], [0, 2, 7]]):
        write(tmp_path / f"heldout-{n}.safetensors", 5, text_breaks=torch.tensor(breaks))
    write(tmp_path / "part.safetensors", 100)
    assert HeldoutFiles(open_activation_set(tmp_path), 10).text_breaks.tolist() == [1, 4, 5, 7]
    write(tmp_path / "heldout-2.safetensors", 5)
    assert HeldoutFiles(open_activation_set(tmp_path), 10).text_breaks.tolist() == [1, 4, 5, 7]
    assert HeldoutFiles(open_activation_set(tmp_path), 11).text_breaks is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda d: d / "acts.pt", r"its name does not end in \.safetensors; activation files are"),
        (lambda d: d / "nowhere.safetensors", "no file or folder"),
        (lambda d: (d / "empty").mkdir() or d / "empty", "holds no .safetensors file"),
        (lambda d: save_file({"x": torch.zeros(2)}, d / "x.safetensors") or d, "it has x"),
        (
            lambda d: save_file({"activations": torch.zeros(4)}, d / "x.safetensors") or d,
            r"F32 \[4\]; it must be \[tokens, d_in\]",
        ),
        (
            lambda d: (write(d / "a.safetensors", 4), write(d / "b.safetensors", 4, 9)) and d,
            "do not fit together",
        ),
        (
            lambda d: (d / "b.safetensors").write_bytes(b"not safetensors at all") and d,
            "not a readable safetensors file",
        ),
        (
            lambda d: write(d / "a.safetensors", 4, token_ids=torch.zeros(5)) and d,
            r"has 4 activations but token_ids of shape \[5\]",
        ),
        (lambda d: write(d / "heldout.safetensors", 4) and d, "none to train on"),
        (lambda d: write(d / "a.safetensors", 0) and d, "holds too few activations"),
        (lambda d: write(d / "a.safetensors", 1) and d, "at least one to train on"),
        (
            lambda d: (write(d / "heldout.safetensors", 0), write(d / "a.safetensors", 9)) and d,
            "and one held out",
        ),
        (lambda d: write(d / "a.safetensors", 4, d_in=0) and d, r"F32 \[4, 0\]; it must be"),
        (
            lambda d: write(d / "a.safetensors", 4, token_ids=torch.zeros(4)) and d,
            "token_ids of type F32; they must be integers",
        ),
        *(
            (
                lambda d, starts=starts: write(d / "a.safetensors", 4, row_starts=starts) and d,
                "must rise from 0 to the number of activations, 4",
            )
            for starts in (
                torch.tensor([0, 3, 2, 4]),
                torch.tensor([0, 9]),
                torch.tensor([1, 4]),
                torch.tensor([0.0, 4.0]).bfloat16(),
                torch.tensor(4),
            )
        ),
        *(
            (
                lambda d, text=text: (
                    write(d / "a.safetensors", 4, metadata={"ctx_len": text}) and d
                ),
                "must be the number of tokens in a row, or absent",
            )
            for text in ("n/a", "-3", "1e3", "")
        ),
    ],
)
def test_an_unusable_file_is_named_with_the_remedy(make, message: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=message):
        open_activation_set(make(tmp_path))


@pytest.mark.parametrize("epochs", [None, 3])
@pytest.mark.parametrize(("tokens", "is_repeated"), [(2000, True), (3410, True), (3414, False)])
def test_files_that_are_read_again_are_reported_unless_epochs_are_asked_for(
    config: RunConfig, tmp_path: Path, tokens: int, is_repeated: bool, epochs: int | None
):
    write(tmp_path / "a.safetensors", tokens, 32)
    sizes = {"total_tokens": None if epochs else 3072, "num_epochs": epochs}
    train_config = config.train.model_copy(update=sizes)
    config = from_files(config.model_copy(update={"train": train_config}), tmp_path)
    said = FileFeed([config]).notices
    assert len(said) == (is_repeated and not epochs)
    assert all("fewer than the 3,072 of train.total_tokens" in notice for notice in said)


@pytest.mark.parametrize("phase", ["saving held-out activations", "saving activations"])
def test_a_folder_whose_saving_was_interrupted_is_refused(
    config: RunConfig, tmp_path: Path, phase: str
):
    saving = save_activations(config, tmp_path / "saved")
    for record in saving:
        if getattr(record, "phase", "") == phase:
            break
    saving.close()
    with pytest.raises(ConfigError, match=r"saved' was interrupted, so some are missing; delete"):
        open_activation_set(tmp_path / "saved")
    with pytest.raises(ConfigError, match="was interrupted"):
        check_config(from_files(config, tmp_path / "saved"))


@pytest.mark.parametrize(("first", "last"), [(99_999, 1), (1, -100), (8192, 8192)])
def test_a_token_that_the_model_does_not_know_is_refused_before_training(
    config: RunConfig, tmp_path: Path, first: int, last: int
):
    """The embedded tokenizer, which the test's models share, has 8,192 ids."""
    ids = torch.linspace(first, last, 90, dtype=torch.float64).round().int()
    write(tmp_path / "heldout-0.safetensors", 90, 32, token_ids=ids)
    write(tmp_path / "train-0.safetensors", 900, 32, token_ids=torch.full((900,), 99_999))
    records = []
    with pytest.raises(ConfigError, match=r"heldout-0.* has the token id .*are 0 to 8191"):
        records.extend(train(from_files(config, tmp_path), RunFolder(tmp_path / "run")))
    assert not any(isinstance(record, PlanRecord) for record in records)


def test_empty_files_among_others_are_skipped(tmp_path: Path):
    for number, tokens in enumerate([0, 30, 0, 70, 0]):
        write(tmp_path / f"{number}.safetensors", tokens)
    files = open_activation_set(tmp_path)
    assert [part.last - part.first for part in files.train] == [30, 60]
    source = FileSource(files, Cursor(), torch.device("cpu"))
    assert [len(source.next_block()[0]) for _ in range(4)] == [30, 60, 30, 60]
    assert HeldoutFiles(files, 100).num_tokens == 10


def test_saving_refuses_a_folder_that_is_not_empty(config: RunConfig, tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep me")
    with pytest.raises(UserError, match="is not empty"):
        collected(save_activations(config, tmp_path))
    assert (tmp_path / "mine.txt").read_text() == "keep me"
