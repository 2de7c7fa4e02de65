"""Conversations as token ids, by the chat template of the language model's tokenizer.

Fed by `rows`, which asks whether a conversation can be used, and `packing`, which asks for its ids.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Int
from tokenizers import Tokenizer

from sae_engine.errors import ConfigError
from sae_engine.text.context import mark_context
from sae_engine.text.messages import Message, NotMessagesError, no_chat_template, role_of
from sae_engine.text.pieces import MAX_PIECE_CHARS

MAX_REASON_CHARS = 100
DATE = "26 Jul 2024"
"""What templates that print today's date are given, so that a run can be resumed on another day."""
_FIXED_DATE = f"{{% macro strftime_now(format) %}}{DATE}{{% endmacro %}}\n"
_PRIVATE_USE = range(0xE000, 0xF900)
"""Characters that mean nothing, so text hardly holds them."""


class ChatTemplate:
    """Renders conversations and tokenizes what the template prints, its special tokens as such.

    A conversation travels as the JSON of its messages. Its ids lack the BOS at the beginning, which
    begins each row anyway, and end with an eos.
    """

    def __init__(
        self,
        tokenizer: Any,
        model_name: str,
        vocab_size: int,
        roles: Collection[str] | None = None,
    ) -> None:
        """`tokenizer` is that of transformers. All tokens but those of what `roles` say are
        context; if None, no token is.

        Raises `ConfigError` if it has no chat template.
        """
        self._tokenizer = tokenizer
        self._model_name = model_name
        self._vocab_size = vocab_size
        self._roles = None if roles is None else {role_of(role) for role in roles}
        self.text = _template_of(tokenizer, model_name)
        """The template, with a fixed date."""
        added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
        special = [re.escape(token.content) for token in added if token.special]
        self._special = re.compile("|".join(special) or "(?!)")
        # A copy, because the model's own tokenizer reads special tokens as text.
        self._encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._encoder.no_truncation()
        self._encoder.no_padding()

    def check(self, conversation: str) -> None:
        """Raise `NotMessagesError` for a conversation that the template refuses, or whose tokens
        could not be distinguished from the template's own.
        """
        if token := self._special.search(conversation):
            raise NotMessagesError(f"holds the special token '{token[0]}' in a message")
        text = self._render(json.loads(conversation))
        if not text.strip():
            raise NotMessagesError("holds a conversation of which the chat template prints nothing")
        if len(text) > MAX_PIECE_CHARS:
            raise NotMessagesError(
                f"holds a conversation of more than {MAX_PIECE_CHARS:,} characters"
            )

    def encode(self, conversations: Sequence[str]) -> list[Int[np.ndarray, " n"]]:
        """The ids of each conversation that `check` accepts, context marked as in `context`."""
        messages: list[list[Message]] = [json.loads(text) for text in conversations]
        texts = [self._ended(self._render(each)) for each in messages]
        encoded = self._encoder.encode_batch(texts, add_special_tokens=False)
        return [self._ids(*parts) for parts in zip(messages, texts, encoded, strict=True)]

    def _ids(self, messages: Sequence[Message], text: str, encoding: Any) -> Int[np.ndarray, " n"]:
        ids = np.array(encoding.ids, np.int64)
        self._require_embeddings(ids)
        begin = int(len(ids) > 0 and ids[0] == self._tokenizer.bos_token_id)
        if self._roles is not None:
            offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)
            ids = mark_context(ids, _inside(offsets, list(self._spans(messages, text))))
        return ids[begin:]

    def _require_embeddings(self, ids: Int[np.ndarray, " n"]) -> None:
        if (largest := ids.max(initial=0)) >= self._vocab_size:
            raise ConfigError.of(
                "model.name",
                f"The chat template of '{self._model_name}' does not fit the model: it prints "
                f"'{self._encoder.id_to_token(int(largest))}', which has id {largest:,}, but the "
                f"embedding has ids 0 to {self._vocab_size - 1:,} only; use the tokenizer that the "
                "model was trained with.",
            )

    def _ended(self, text: str) -> str:
        eos = self._tokenizer.eos_token
        return text if eos is None or text.rstrip().endswith(eos) else text + eos

    def _render(self, messages: Sequence[Message]) -> str:
        """What the template prints; raises `NotMessagesError`."""
        try:
            return self._tokenizer.apply_chat_template(
                messages, chat_template=self.text, tokenize=False
            )
        except Exception as error:  # whatever templates raise
            raise NotMessagesError(
                f"holds a conversation that the chat template refuses ({_reason(error)})"
            ) from error

    def _spans(self, messages: Sequence[Message], text: str) -> Iterator[tuple[int, int]]:
        """Where in `text` the messages of the chosen roles are.

        The place of a message is what changes when only its content is replaced by a character that
        is nowhere else. Unlike the length of a rendered beginning, this holds for templates that
        print a message differently when others follow it.
        """
        assert self._roles is not None
        probe = next(character for character in map(chr, _PRIVATE_USE) if character not in text)
        for number, message in enumerate(messages):
            if message["role"] in self._roles and message["content"].strip():
                changed = [*messages]
                changed[number] = message | {"content": probe}
                try:
                    yield _difference(text, self._ended(self._render(changed)))
                except NotMessagesError:
                    continue  # a template that refuses the probe: the message stays context


def _template_of(tokenizer: Any, model_name: str) -> str:
    try:
        template = tokenizer.get_chat_template()
    except ValueError:
        raise no_chat_template(model_name) from None
    return _FIXED_DATE + template if "strftime_now" in template else template


def _reason(error: Exception) -> str:
    """The template's own message, or the kind of error."""
    from jinja2 import TemplateError

    first = str(error).strip().split("\n")[0][:MAX_REASON_CHARS].rstrip(".")
    return first if type(error) is TemplateError and first else type(error).__name__


def _difference(text: str, changed: str) -> tuple[int, int]:
    """Bounds of the part of `text` that is different in `changed`."""
    start = _num_equal(text, changed)
    return start, len(text) - _num_equal(text[start:][::-1], changed[start:][::-1])


def _num_equal(one: str, other: str) -> int:
    """How many characters at the beginning of both are the same."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))


def _inside(
    offsets: Int[np.ndarray, "n 2"], spans: Sequence[tuple[int, int]]
) -> Bool[np.ndarray, " n"]:
    """Which tokens, by the bounds of their characters, overlap one of `spans`."""
    starts, ends = offsets.T
    inside = np.zeros(len(offsets), np.bool_)
    for first, last in spans:
        inside |= (starts < last) & (ends > first)
    return inside
