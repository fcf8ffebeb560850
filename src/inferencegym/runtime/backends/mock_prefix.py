"""Which blocks of a prompt the mock's prefix cache would know again: equal beginnings of text give equal keys. Nothing of the text stays.

Where there is no tokenizer a block of 16 tokens stands for 64 bytes of text (`wire.BYTES_PER_TOKEN`); roles and marks of a chat template are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from inferencegym.runtime.ports import Ask
from inferencegym.runtime.wire import BYTES_PER_TOKEN, Chat, Completion

#: Keys are 51 bits, so that the engine can number the parts of a block.
_MASK = (1 << 51) - 1


def prefix_keys(ask: Ask, block_tokens: int) -> Sequence[int]:
    """Keys of the prompt's leading whole blocks."""
    size = block_tokens * BYTES_PER_TOKEN
    most = ask.prompt_tokens // block_tokens
    if most == 0:
        return ()
    text = _text(ask.fields)[: most * size]
    key, keys = 0, []
    for end in range(size, len(text) + 1, size):
        key = hash((key, text[end - size : end])) & _MASK
        keys.append(key)
    return keys


def _text(fields: Any) -> str:
    if isinstance(fields, Chat):
        parts = []
        for message in fields.messages:
            content = message.content
            parts.append(content if isinstance(content, str) else "".join(part.text or "" for part in content or ()))
        return parts[0] if len(parts) == 1 else "\x00".join(parts)
    if isinstance(fields, Completion) and isinstance(fields.prompt, str):
        return fields.prompt
    return ""
