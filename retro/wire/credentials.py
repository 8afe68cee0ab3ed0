"""The key of an API: read from the environment alone, and kept out of texts and logs from then on."""

from __future__ import annotations

import os

from retro.config import ConfigError
from retro.wire.redaction import redacted

KEY = "OPENAI_API_KEY"
NO_KEY = "none"
"""Sent to a server of one's own when no key is set: the protocol wants one, such servers ignore it."""


def read_key() -> str:
    """The key, or :data:`NO_KEY`.

    Raises:
        ConfigError: if what is set cannot be a key.
    """
    key = os.environ.get(KEY, "").strip()
    if not key:
        return NO_KEY
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(f"the environment variable {KEY} holds spaces or signs that no key has: set it again")
    redacted.hide(key)
    return key
