"""Reads the API key, from the environment only, and has it hidden in texts and logs."""

from __future__ import annotations

import os

from retro.config import ConfigError
from retro.wire.redaction import redacted

KEY = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent when no key is set: the protocol requires one, and servers without keys ignore it."""


def read_key() -> str:
    """The key, or :data:`NO_KEY`. Raises ConfigError if the variable holds something that cannot be a key."""
    key = os.environ.get(KEY, "").strip()
    if not key:
        return NO_KEY
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"the environment variable {KEY} holds spaces or characters that a key cannot have: set it again"
        )
    redacted.hide(key)
    return key
