"""How a broken rule is told."""

from __future__ import annotations

_LONGEST = 300


def require(kept: bool, rule: str, seen: str) -> None:
    """Raise ``AssertionError`` with the rule and what was seen, unless it is kept."""
    if not kept:
        raise AssertionError(f"{rule}: {seen}")


def shown(value: object) -> str:
    """``value`` as a message shows it: its repr, cut where it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"
