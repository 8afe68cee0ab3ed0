"""Database URLs as a config and the commands write them: without a password, and with a namespace in PostgreSQL."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, quote

from retro.reading import without_user

_SECRET = re.compile(r"(?<=[?&])(password|passfile|sslpassword|service)=[^&]*", re.IGNORECASE)
"""Parameters of a PostgreSQL URL that hold a password, or name a file that may hold one."""


def has_password(url: str) -> bool:
    """Whether ``url`` holds a password, or names a file of passwords."""
    user = url.rpartition("@")[0].partition("//")[2]
    return ":" in user or _SECRET.search(url) is not None


def without_password(url: str) -> str:
    """``url`` for a message: asterisks replace the user and everything that may be a password."""
    return _SECRET.sub(r"\1=***", without_user(url))


def in_namespace(url: str, name: str) -> str:
    """``url`` with ``?schema=name``, if it is one of PostgreSQL and names no schema itself."""
    base, _, query = url.partition("?")
    if base.partition(":")[0].partition("+")[0] != "postgresql" or "schema" in parse_qs(query, keep_blank_values=True):
        return url
    return f"{base}?{query}{'&' if query else ''}schema={quote(name, safe='')}"
