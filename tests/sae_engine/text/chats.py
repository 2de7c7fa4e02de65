"""Conversations, and a tokenizer of a few words with a chat template, for the tests of both."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

PAD, EOS, BOS, TURN, END, USER, ASSISTANT, SYSTEM = range(8)
SPECIAL = ["<pad>", "<eos>", "<bos>", "<turn>", "<end>"]
WORDS = ["user", "assistant", "system", "hi", "there", "yes", "no", "why", "so", "be", "nice", "?"]
HI, THERE, YES, NO, WHY, SO, BE, NICE, ASK = range(8, 17)
VOCAB = 17

PLAIN = (
    "{{ bos_token }}{% for m in messages %}"
    "<turn>{{ m.role }} {{ m.content | trim }}<end>{% endfor %}"
)


def small_tokenizer(template: str | None = PLAIN) -> PreTrainedTokenizerFast:
    """One id per word, and the special tokens of `SPECIAL`."""
    ids = {word: n for n, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in SPECIAL])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>"
    )
    wrapped.chat_template = template
    # As the language model sets it.
    wrapped.backend_tokenizer.encode_special_tokens = True
    return wrapped


def messages(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in turns]


def write_chats(path: Path, rows: Iterable[object], column: str = "messages") -> Path:
    path.write_text("\n".join(json.dumps({column: row}) for row in rows), "utf-8")
    return path


def as_text(conversation: Sequence[dict[str, Any]]) -> str:
    return json.dumps(conversation)
