"""Conversations become the ids of the chat template, of which some are marked as context."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from sae_engine.errors import ConfigError, UserError
from sae_engine.preflight import check_text
from sae_engine.schema.config import DataConfig
from sae_engine.text.chat import ChatTemplate
from sae_engine.text.context import read_rows
from sae_engine.text.messages import NotMessagesError
from sae_engine.text.notices import TextNotices
from sae_engine.text.order import shuffled_rows
from sae_engine.text.packing import Cursor, Packing, count_tokens, training_rows
from sae_engine.text.sources import documents
from tests.sae_engine.text.chats import (
    ASSISTANT,
    BE,
    BOS,
    END,
    EOS,
    HI,
    NICE,
    NO,
    PLAIN,
    SO,
    THERE,
    TURN,
    USER,
    VOCAB,
    WHY,
    YES,
    as_text,
    messages,
    small_tokenizer,
    write_chats,
)
from tests.sae_engine.text.heldout_text import mixed_heldout_rows

TALK = messages(("user", " hi there\n"), ("assistant", "yes"), ("user", "why"), ("assistant", "so"))
TALK_IDS = [
    *(TURN, USER, HI, THERE, END, TURN, ASSISTANT, YES, END),
    *(TURN, USER, WHY, END, TURN, ASSISTANT, SO, END, EOS),
]
FOLDED = (  # as Llama 2: a system message becomes a part of the user's first
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set first = messages[0].content %}"
    "{% set rest = messages[1:] %}{% else %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}<turn>{% if loop.first %}{{ first }} {% endif %}{{ m.content }}<end>"
    "{% endfor %}"
)
AHEAD = (  # as Qwen 3: the last answer is printed differently
    "{% for m in messages %}<turn>{{ m.role }}{% if loop.last %} be nice{% endif %}"
    " {{ m.content }}<end>{% endfor %}"
)
ENDED = "{% for m in messages %}{{ m.role }} {{ m.content }}{{ eos_token }}\n{% endfor %}"
REFUSING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}"
    "{% endif %}" + PLAIN
)
DATED = "{{ strftime_now('%d %B %Y') }}" + PLAIN


def chat_of(template: str | None = PLAIN, roles: list[str] | None = None) -> ChatTemplate:
    return ChatTemplate(small_tokenizer(template), "a model", VOCAB, roles)


def ids_of(chat: ChatTemplate, conversation: list) -> list[int]:
    [ids] = chat.encode([as_text(conversation)])
    return ids.tolist()


def counted(chat: ChatTemplate, conversation: list) -> list[int]:
    """The ids that are not context."""
    [ids] = chat.encode([as_text(conversation)])
    rows = read_rows(ids)
    return rows.ids[rows.counted].tolist()


def test_a_conversation_is_the_templates_tokens_without_bos_and_with_an_eos():
    assert ids_of(chat_of(), TALK) == TALK_IDS
    theirs = small_tokenizer()
    theirs.backend_tokenizer.encode_special_tokens = False
    assert theirs.apply_chat_template(TALK, return_dict=False) == [BOS, *TALK_IDS[:-1]]


def test_an_eos_that_the_template_prints_is_not_doubled():
    ids = ids_of(chat_of(ENDED), TALK[:2])
    assert ids == [USER, HI, THERE, EOS, ASSISTANT, YES, EOS]


def test_context_is_marked_by_the_complement_of_its_id():
    context = [~id_ for id_ in TALK_IDS]
    context[7], context[15] = YES, SO
    assert ids_of(chat_of(roles=["assistant"]), TALK) == context


@pytest.mark.parametrize(
    ("template", "roles", "expected"),
    [
        (PLAIN, ["user"], [HI, THERE, WHY]),
        (PLAIN, ["human", "gpt"], [HI, THERE, YES, WHY, SO]),
        (PLAIN, ["system"], [BE, NICE]),
        (PLAIN, ["tool"], []),
        (FOLDED, ["system"], [BE, NICE]),
        (FOLDED, ["user"], [HI, THERE, WHY]),
        (AHEAD, ["assistant"], [YES, SO]),
        (AHEAD, ["user", "system"], [BE, NICE, HI, THERE, WHY]),
        ("no {{ messages[1].content }}", ["assistant"], []),
    ],
)
def test_only_what_the_chosen_roles_say_counts(template: str, roles: list[str], expected: list):
    talk = [*messages(("system", "be nice")), *TALK]
    assert counted(chat_of(template, roles), talk) == expected


def test_equal_messages_are_told_apart():
    talk = messages(("user", "no"), ("assistant", "no"), ("user", "no"), ("assistant", ""))
    [ids] = chat_of(roles=["assistant"]).encode([as_text(talk)])
    assert np.flatnonzero(ids >= 0).tolist() == [6]
    assert ids[6] == NO


@pytest.mark.parametrize("roles", [None, ["assistant"], ["user", "system"]])
def test_a_conversation_begins_with_the_tokens_of_its_beginning(roles: list[str] | None):
    random, chat = Random(0), chat_of(roles=roles)
    for _ in range(20):
        turns = [
            (random.choice(["user", "assistant", "system"]), " ".join(random.choices("hi no", k=3)))
            for _ in range(6)
        ]
        whole = ids_of(chat, messages(*turns))
        for n in range(1, 6):
            beginning = ids_of(chat, messages(*turns[:n]))[:-1]  # without eos
            assert whole[: len(beginning)] == beginning


def test_a_template_that_prints_the_date_prints_the_same_on_every_day():
    text = chat_of(DATED)._render(TALK)
    assert text == "26 Jul 2024" + chat_of()._render(TALK)


def test_special_tokens_in_a_message_are_refused_and_not_read():
    for token in ("<bos>", "<end>"):
        talk = messages(("user", f"hi {token}"))
        with pytest.raises(NotMessagesError, match=f"special token '{token}' in a message"):
            chat_of().check(as_text(talk))


def test_a_token_without_an_embedding_is_refused():
    chat = ChatTemplate(small_tokenizer(), "a model", SO, None)
    with pytest.raises(ConfigError, match=r"prints 'so', which has id 13, but .* ids 0 to 12 only"):
        chat.encode([as_text(TALK)])


@pytest.mark.parametrize("template", [None, {"tools": PLAIN}])
def test_a_tokenizer_without_a_chat_template_is_refused(template: object):
    with pytest.raises(ConfigError, match="tokenizer of 'a model' has no chat template"):
        chat_of(template)  # pyright: ignore[reportArgumentType]


def texts(path: Path, chat: ChatTemplate | None = None, notices: TextNotices | None = None):
    data = DataConfig(dataset=str(path), messages_column="messages")
    both = [d for s in ("train", "heldout") for d in documents(data, s, 0, notices, chat)]
    return [json.loads(document.text) for document in sorted(both)]


def test_every_form_of_a_conversation_is_read_alike(tmp_path: Path):
    shared = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes"}]
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]},
        {"role": "assistant", "content": ["yes", {"type": "image", "text": None}]},
    ]
    plain = messages(("user", "hi"), ("assistant", "yes"))
    rows = [plain, shared, parts, json.dumps(plain)]
    assert texts(write_chats(tmp_path / "a.jsonl", rows)) == [plain] * 4
    for n, row in enumerate([plain, shared]):
        parquet.write_table(pa.table({"messages": [row]}), tmp_path / f"{n}.parquet")
        assert texts(tmp_path / f"{n}.parquet") == [plain]
    quoted = json.dumps(plain).replace('"', '""')
    (tmp_path / "a.csv").write_text(f'id,messages\n1,"{quoted}"\n')
    assert texts(tmp_path / "a.csv") == [plain]


def test_other_keys_reach_the_template():
    calls = [{"role": "assistant", "tool_calls": [{"name": "no"}], "weight": None}]
    chat = chat_of("{% for m in messages %}{{ m.tool_calls[0].name }}{% endfor %}")
    assert ids_of(chat, calls) == [NO, EOS]


GOOD = [messages(("user", f"hi {n}"), ("assistant", "yes")) for n in range(30)]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (None, "holds no messages"),
        ([], "holds no messages"),
        ("", "holds no messages"),
        (7, "holds int, not a list of messages"),
        ("just text", "holds str, not a list of messages"),
        ({"role": "user", "content": "hi"}, "holds dict, not a list of messages"),
        (["hi"], "holds str in place of a message"),
        ([{"content": "hi"}], "holds a message without a role"),
        ([{"role": 3, "content": "hi"}], "holds a message without a role"),
        ([{"role": "user", "content": None}], "holds a message without text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "holds a message without text"),
        (
            messages(("system", "be"), ("user", "hi")),
            "holds a conversation that the chat template refuses (System role not supported)",
        ),
        (messages(("user", "<eos>")), "holds the special token '<eos>' in a message"),
    ],
)
def test_a_bad_row_is_left_out_and_counted(tmp_path: Path, row: object, reason: str):
    path, notices = tmp_path / "a.jsonl", TextNotices()
    write_chats(path, [*GOOD[:3], row, *GOOD[3:]])
    assert texts(path, chat_of(REFUSING), notices) == GOOD
    [sentence] = notices.sentences
    assert sentence == (
        f"1 row was left out (column 'messages' {reason}); the first is line 4 of '{path}'."
    )
    write_chats(path, [row])
    with pytest.raises(ConfigError) as caught:
        texts(path, chat_of(REFUSING))
    assert str(caught.value) == f"data.messages_column: Column 'messages' {reason}."


def test_one_broken_text_in_a_parquet_file_costs_one_row(tmp_path: Path):
    kind = pa.list_(pa.struct({"role": pa.string(), "content": pa.string()}))
    array = pa.array([*GOOD, messages(("user", "broken")), *GOOD], kind)
    broken = (
        array.flatten().field("content").buffers()[2].to_pybytes().replace(b"broken", b"\xff" * 6)
    )
    content = array.flatten().field("content")
    content = pa.Array.from_buffers(
        pa.string(), len(content), [None, content.buffers()[1], pa.py_buffer(broken)]
    )
    structs = pa.StructArray.from_arrays(
        [array.flatten().field("role"), content], ["role", "content"]
    )
    table = pa.table({"messages": pa.ListArray.from_arrays(array.offsets, structs)})
    parquet.write_table(table, tmp_path / "a.parquet")
    assert texts(tmp_path / "a.parquet") == [*GOOD, *GOOD]


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"messages_column": "chat"}, "data.messages_column: There is no column 'chat' in line 1"),
        ({"dataset": "a.txt"}, "data.messages_column: .*a.txt' is plain text and has no columns"),
        ({"dataset": "python-stdlib"}, "data.messages_column: .* holds no conversations"),
        ({"train_roles": ["asistant"]}, r"names asistant, but .* only have assistant, user\."),
    ],
)
def test_mistakes_are_found_before_a_run(tmp_path: Path, data: dict, sentence: str):
    write_chats(tmp_path / "a.jsonl", GOOD)
    (tmp_path / "a.txt").write_text("some text")
    name = data.get("dataset", "a.jsonl")
    dataset = name if name == "python-stdlib" else str(tmp_path / name)
    config = DataConfig.model_validate(
        {"messages_column": "messages"} | data | {"dataset": dataset}
    )
    with pytest.raises(ConfigError, match=sentence):
        check_text(config)


def test_a_role_that_is_missing_beside_others_is_a_notice(tmp_path: Path):
    path = str(write_chats(tmp_path / "a.jsonl", GOOD))
    data = DataConfig(dataset=path, messages_column="messages", train_roles=("gpt", "tool"))
    [sentence] = check_text(data)
    assert "data.train_roles names tool, but the first conversations" in sentence
    assert check_text(data.model_copy(update={"train_roles": ("human",)})) == []


CTX = 16


def random_talks(path: Path, count: int) -> Path:
    random = Random(3)

    def say(role: str) -> tuple[str, str]:
        words = random.choices(["hi", "there", "why", "no", "?"], k=random.randint(1, 6))
        return role, " ".join(words)

    return write_chats(path, [messages(say("user"), say("assistant")) for _ in range(count)])


def packing_of(roles: list[str] | None) -> Packing:
    tokenizer = small_tokenizer()
    chat = ChatTemplate(tokenizer, "a model", VOCAB, roles)
    return Packing(tokenizer.backend_tokenizer, CTX, BOS, EOS, None, chat)


@pytest.mark.parametrize("roles", [None, ["assistant"]])
def test_rows_are_one_bos_and_the_conversations_joined(tmp_path: Path, roles: list[str] | None):
    path, packing = random_talks(tmp_path / "a.jsonl", 60), packing_of(roles)
    config = DataConfig(dataset=str(path), messages_column="messages", ctx_len=CTX)
    rows = np.stack(list(training_rows(config, packing, num_epochs=1)))
    assert (rows[:, 0] == BOS).all()
    assert not np.isin(rows[:, 1:], [BOS, ~BOS]).any()
    joined = [
        id_
        for d in documents(config, "train")
        for id_ in ids_of(chat_of(roles=roles), json.loads(d.text))
    ]
    body = rows[:, 1:].ravel().tolist()
    assert body == joined[: len(body)]
    assert len(joined) - len(body) < CTX - 1
    num_counted = sum(id_ >= 0 and id_ != EOS for id_ in body)
    assert count_tokens(config, packing, [BOS, EOS]) == num_counted
    assert (num_counted < len(body) / 2) == (roles is not None)


@pytest.mark.parametrize("pool_rows", [1, 7])
def test_from_any_position_the_same_mixed_rows_follow(tmp_path: Path, pool_rows: int):
    chats, prose = random_talks(tmp_path / "a.jsonl", 60), tmp_path / "b.jsonl"
    prose.write_text("\n".join(json.dumps({"text": f"{'so ' * n}<eos>"}) for n in range(1, 40)))
    parts = [
        {"dataset": str(chats), "weight": 2, "messages_column": "messages"},
        {"dataset": str(prose), "weight": 1},
    ]
    data = {"mixture": parts, "ctx_len": CTX, "train_roles": ["assistant"]}
    config, packing = DataConfig.model_validate(data), packing_of(["assistant"])
    for given in (0, 1, 5, 20):
        rows = shuffled_rows(config, packing, Cursor(), pool_rows=pool_rows)
        if given:
            rows.take(given)
        again = shuffled_rows(config, packing, rows.cursor, pool_rows=pool_rows)
        expected = rows.take(30)
        assert np.array_equal(again.take(30), expected)
    has_context = (expected < 0).any(axis=1)
    assert has_context.sum() == pytest.approx(20, abs=3)  # two of three rows


def test_held_out_rows_hold_as_many_tokens_as_wanted_without_context(tmp_path: Path):
    config = DataConfig(
        dataset=str(random_talks(tmp_path / "a.jsonl", 900)),
        messages_column="messages",
        ctx_len=CTX,
        train_roles=("assistant",),
    )
    everything = mixed_heldout_rows(config, packing_of(["assistant"]), 10**6)
    found = ((everything >= 0).sum(axis=1) - 1).cumsum()
    for wanted in (1, 40, 100):
        rows = mixed_heldout_rows(config, packing_of(["assistant"]), wanted)
        assert len(rows) == np.searchsorted(found, wanted) + 1
        assert np.array_equal(rows, everything[: len(rows)])


def test_a_role_that_says_nothing_ends_reading_at_once(tmp_path: Path):
    path = random_talks(tmp_path / "a.jsonl", 900)
    config = DataConfig(
        dataset=str(path), messages_column="messages", ctx_len=CTX, train_roles=("tool",)
    )
    with pytest.raises(UserError, match="No held-out message is of tool; name roles of"):
        mixed_heldout_rows(config, packing_of(["tool"]), 100)
    with pytest.raises(UserError, match="holds no conversations to train on"):
        training_rows(config, packing_of(["tool"])).take(10**6)
