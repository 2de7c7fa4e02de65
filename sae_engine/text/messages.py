"""Conversations as datasets hold them, read into messages with a role and a content.

Called by `rows`; `chat` turns the messages into token ids.
"""

from __future__ import annotations

import json
from typing import Any

from sae_engine.errors import ConfigError

Message = dict[str, Any]
"""`role` and `content`, both text, and what else the dataset holds, such as `tool_calls`."""

_RENAMED = {"human": "user", "gpt": "assistant"}
"""Roles of ShareGPT."""


class NotMessagesError(ValueError):
    """A value is not a list of messages; the text goes on from the name of its column."""


def messages_of(value: object) -> list[Message]:
    """The messages of a conversation: a list, or the JSON of one; raises `NotMessagesError`."""
    found = _parsed(value) if isinstance(value, str) else value
    if found is None or found == []:
        raise NotMessagesError("holds no messages")
    if not isinstance(found, list):
        raise NotMessagesError(f"holds {type(value).__name__}, not a list of messages")
    return [_message(part) for part in found]


def no_chat_template(model_name: str) -> ConfigError:
    return ConfigError.of(
        "data.messages_column",
        f"The tokenizer of '{model_name}' has no chat template; use a model that is made for "
        "conversations, or a column of text.",
    )


def role_of(name: str) -> str:
    """A role by the name that chat templates know."""
    return _RENAMED.get(name, name)


def _parsed(text: str) -> object:
    try:
        return json.loads(text) if text.strip() else None
    except (ValueError, RecursionError):
        return text


def _message(part: object) -> Message:
    if not isinstance(part, dict):
        raise NotMessagesError(f"holds {type(part).__name__} in place of a message")
    given = {str(name): value for name, value in part.items() if value is not None}
    role, name = given.pop("role", None), given.pop("from", None)
    content, value = given.pop("content", None), given.pop("value", None)
    role, content = role or name, _joined(value if content is None else content)
    if not (isinstance(role, str) and role):
        raise NotMessagesError("holds a message without a role")
    if content is None and "tool_calls" not in given:
        raise NotMessagesError("holds a message without text")
    return {"role": role_of(role), "content": content or "", **given}


def _joined(content: object) -> str | None:
    """The text of a message, whose parts may come one by one; None if it has none."""
    if not isinstance(content, list):
        return content if isinstance(content, str) else None
    texts = [part.get("text") if isinstance(part, dict) else part for part in content]
    found = [text for text in texts if isinstance(text, str)]
    return "".join(found) if found else None
