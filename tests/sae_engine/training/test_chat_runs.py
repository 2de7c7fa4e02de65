"""Runs on conversations: what the chosen roles do not say is in no batch, metric or feature."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_engine.activations import stream as activations
from sae_engine.activations.feed import TextFeed
from sae_engine.activations.stream import ActivationStream
from sae_engine.activations.writer import save_activations
from sae_engine.errors import ConfigError
from sae_engine.features.index.reader import FeatureIndex
from sae_engine.files import RunFolder
from sae_engine.preflight import check_config
from sae_engine.sae.autoencoders import TopKSAE
from sae_engine.schema.config import RunConfig
from sae_engine.schema.records import AnyRecord, MetricsRecord, NoticeRecord, StopRequest
from sae_engine.training.loop import train
from tests.sae_engine.text.chats import messages, write_chats
from tests.sae_engine.training.test_loop import collected, config_of, losses, stopping_at

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}[{{ m.role }}]:{{ m.content }};{{ '\\n' }}{% endfor %}"
)
USER = ["import", "self", "return", "class"]
ASSISTANT = ["value", "number", "while", "list"]
"""What each role says is only said by it."""


@pytest.fixture(autouse=True, scope="module")
def _small_blocks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(activations, "TOKENS_PER_BLOCK", 512)
        yield


@pytest.fixture(scope="module")
def model(model_folders, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chat") / "model"
    shutil.copytree(model_folders["gemma2"], folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture(scope="module")
def chats(tmp_path_factory) -> Path:
    random = Random(0)

    def say(words: list[str], most: int) -> str:
        return "".join(f" {word}" for word in random.choices(words, k=random.randint(1, most)))

    def talk() -> list[dict[str, str]]:
        turn = ("user", say(USER, 30)), ("assistant", say(ASSISTANT, 12))
        return messages(*turn * random.randint(1, 2))

    path = tmp_path_factory.mktemp("chats") / "chats.jsonl"
    return write_chats(path, [talk() for _ in range(1200)])


def chat_config(model: Path, chats: Path) -> RunConfig:
    data = {"dataset": str(chats), "messages_column": "messages", "train_roles": ["assistant"]}
    data |= {"heldout_tokens": 1000, "ctx_len": 32, "shuffle_tokens": 1200}
    settings = {"snapshot_every": None, "eval_every": 1000}
    return config_of(model, data=data, train=settings, index={"tokens": 1000})


@pytest.fixture(scope="module")
def trained(model: Path, chats: Path, tmp_path_factory) -> tuple[RunFolder, list[AnyRecord]]:
    """A whole run, and its records."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    return folder, collected(train(chat_config(model, chats), folder))


def assistant_positions(feed: TextFeed, ids: np.ndarray) -> np.ndarray:
    """Where an assistant's word is, by what only assistants say."""
    return np.isin(ids, [feed.model.tokenizer.token_to_id(f"Ġ{word}") for word in ASSISTANT])


def test_batches_hold_the_activations_of_the_chosen_role_only(model: Path, chats: Path):
    feed = TextFeed([chat_config(model, chats)])
    stream = ActivationStream(feed.open_source, batch_size=64, seed=0)
    source = stream.source
    blocks = [source.last.ids]
    given: list[torch.Tensor] = [stream.first_window[0]]
    for _ in range(20):
        given.append(next(stream)[0])
        if source.last.ids is not blocks[-1]:
            blocks.append(source.last.ids)
    ids = np.concatenate(blocks)
    assert len(blocks[0]) > 512 // 32  # most tokens are context, so more rows make a block
    values = feed.model.activations(torch.from_numpy(ids))
    wanted = torch.from_numpy(assistant_positions(feed, ids))
    apart = {"compute_mode": "donot_use_mm_for_euclid_dist"}
    x = torch.cat(given)
    assert torch.cdist(x, values[wanted], **apart).amin(1).max() < 1e-4
    assert torch.cdist(x, values[~wanted], **apart).amin(1).min() > 1e-2
    assert len(stream.first_window[0]) > 100


def test_metrics_features_and_the_plan_count_the_chosen_role_only(
    model: Path, chats: Path, trained, tmp_path: Path
):
    folder, records = trained
    feed = TextFeed([chat_config(model, chats)])
    held = feed.open_heldout(1000, tmp_path / "held")
    wanted = assistant_positions(feed, held.ids)
    values = feed.model.activations(torch.from_numpy(held.ids))[torch.from_numpy(wanted)]
    sae = TopKSAE.load(folder.sae)
    error = (values - sae(values)).pow(2).sum() / (values - values.mean(0)).pow(2).sum()
    last = [r for r in records if isinstance(r, MetricsRecord)][-1]
    assert last.values["eval_fvu"] == pytest.approx(error.item(), rel=1e-4)
    assert last.tokens == 64 * 24
    index = FeatureIndex.open(folder.feature_index(24))
    assert index.arrays.token_ids.tolist() == held.ids[wanted].tolist()
    [notice] = [r for r in records if isinstance(r, NoticeRecord) and "context" in r.message]
    context = held.ids.size - len(held.ids) - int(wanted.sum())  # all but BOS
    assert notice.message.startswith(
        f"Of {context + len(values):,} held-out tokens, {context:,} are only read as context"
    )


def test_the_cross_entropy_is_that_of_the_chosen_roles_predictions(
    model: Path, chats: Path, trained, tmp_path: Path
):
    folder, records = trained
    feed = TextFeed([chat_config(model, chats)])
    held = feed.open_heldout(256, tmp_path / "held")
    ids = torch.from_numpy(held.ids)
    at = torch.from_numpy(assistant_positions(feed, held.ids))
    sae, whole = TopKSAE.load(folder.sae), feed.model.full()
    plain, count = whole.cross_entropy(ids, at=at)
    spliced, _ = whole.cross_entropy(ids, sae, at=at)
    last = [r for r in records if isinstance(r, MetricsRecord)][-1]
    assert last.values["ce_delta"] == pytest.approx((spliced - plain) / count, rel=1e-3, abs=1e-5)


def test_a_run_on_conversations_resumes_exactly(model: Path, chats: Path, trained, tmp_path: Path):
    config, (whole_folder, whole) = chat_config(model, chats), trained
    folder, first = RunFolder(tmp_path / "parts"), list[AnyRecord]()
    collected(train(config, folder, should_stop=stopping_at(13, StopRequest.STOP, first)), first)
    second = collected(train(config, folder, resume=True))
    assert losses(first) | losses(second) == losses(whole)
    for name, tensor in load_file(whole_folder.sae).items():
        assert torch.equal(load_file(folder.sae)[name], tensor)


def test_training_on_saved_activations_of_conversations_is_the_same(
    model: Path, chats: Path, trained, tmp_path: Path
):
    config = chat_config(model, chats)
    collected(save_activations(config, tmp_path / "saved"))
    data = config.data.model_copy(update={"activations": str(tmp_path / "saved")})
    saved = config.model_copy(update={"data": data})
    assert losses(collected(train(saved, RunFolder(tmp_path / "files")))) == losses(trained[1])


def test_an_epoch_counts_the_chosen_role_only(model: Path, chats: Path):
    feed = TextFeed([chat_config(model, chats)])
    said = sum(
        len(message["content"].split())
        for line in chats.read_text().splitlines()
        for message in json.loads(line)["messages"]
        if message["role"] == "assistant"
    )
    assert feed.num_train_tokens == pytest.approx(0.9 * said, rel=0.05)  # a tenth is held out


def test_a_model_without_a_template_is_refused_before_it_is_loaded(model_folders, chats: Path):
    config = chat_config(model_folders["gemma2"], chats)
    with pytest.raises(ConfigError, match="has no chat template; use a model that is made for"):
        check_config(config)
