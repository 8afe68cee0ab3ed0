"""Keys of APIs are kept out of texts and of what the HTTP libraries log."""

from __future__ import annotations

import logging

_LOGGERS = (
    "openai",
    "openai._base_client",
    "httpx",
    "httpcore.connection",
    "httpcore.http11",
    "httpcore.http2",
    "httpcore.proxy",
    "httpcore.socks",
    "httpx2",
    "httpcore2.connection",
    "httpcore2.http11",
    "httpcore2.http2",
    "httpcore2.proxy",
    "httpcore2.socks",
)
"""A filter is asked of the logger that a record was made by, not of those above it. At DEBUG they tell the headers of
answers, among which a server may repeat what it was sent."""
_HIDDEN = "***"


class Redaction(logging.Filter):
    """Replaces the keys that it was told of by asterisks."""

    def __init__(self) -> None:
        super().__init__()
        self._keys: set[str] = set()

    def hide(self, key: str) -> None:
        """From now on ``key`` is replaced, also in the libraries' logs."""
        self._keys.add(key)
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __call__(self, text: str) -> str:
        """``text`` without keys."""
        for key in self._keys:
            text = text.replace(key, _HIDDEN)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record's message; it is logged in any case."""
        record.msg, record.args = self(record.getMessage()), None
        return True


redacted = Redaction()
"""The one of this process: loggers are shared by all of it."""
