"""A key is found in all the ways in which a server may write it down."""

from __future__ import annotations

import json
import logging
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.wire.redaction import Redaction, redacted, shown

KEY = "sk-this-must-not-leak-4f1c/x"
ESCAPED = "".join(f"\\u{ord(letter):04x}" for letter in KEY)
SPELLINGS = {
    "plain": KEY,
    "upper case": KEY.upper(),
    "slash escaped": KEY.replace("/", "\\/"),
    "one letter escaped": KEY.replace("s", "\\u0073"),
    "all escaped": ESCAPED,
    "escaped twice": json.dumps(ESCAPED),
    "python": "".join(f"\\x{ord(letter):02X}" for letter in KEY),
    "url": quote(KEY, safe=""),
    "url, all": "".join(f"%{ord(letter):02x}" for letter in KEY),
    "html": "".join(f"&#{ord(letter)};" for letter in KEY),
    "html, hexadecimal": "".join(f"&#x{ord(letter):X};" for letter in KEY),
    "utf-16": KEY.encode("utf-16").decode("utf-8", "replace"),
    "utf-16, big end first": KEY.encode("utf-16-be").decode(),
    "utf-32": KEY.encode("utf-32-le").decode(),
    "utf-16, escaped": json.dumps(KEY.encode("utf-16-le").decode()),
    "utf-16, as bytes": repr(KEY.encode("utf-16-le")),
    "two lines": KEY[:12] + "\r\n" + KEY[12:],
    "two lines, escaped": json.dumps(KEY[:12] + "\n" + KEY[12:]),
    "zero width": "\u200b".join(KEY),
}


def hidden(*keys: str) -> Redaction:
    redaction = Redaction()
    for key in keys:
        redaction.hide(key)
    return redaction


def letters(text: str) -> str:
    """What a reader makes of it."""
    return "".join(letter for letter in text.lower() if letter.isalnum())


@pytest.mark.parametrize("spelling", SPELLINGS.values(), ids=SPELLINGS)
def test_a_key_is_found_however_it_is_spelled(spelling: str) -> None:
    text = hidden(KEY)(f"you sent {spelling}, and {spelling} again")
    assert text.count("***") == 2
    assert text.startswith("you sent ") and text.endswith(" again")
    assert "leak" not in letters(text)


@pytest.mark.parametrize("count", range(8, len(KEY)))
def test_a_key_within_which_the_text_ends_is_found(count: int) -> None:
    assert hidden(KEY)(f"Bearer {KEY[:count]}") == "Bearer ***"
    assert hidden(KEY)(f'{{"x": "{KEY[:count]}"}}') == '{"x": "***"}'


def test_what_is_not_the_key_stays() -> None:
    text = f"sk-this-must be something else: {KEY[8:]}, {KEY[:7]} and so on"
    assert hidden(KEY)(text) == text


def test_every_key_from_eight_letters_on_is_hidden_and_no_shorter_one() -> None:
    assert hidden("abcd-123", "EMPTY", "local", "desk123")("abcd-123 EMPTY local desk123") == "*** EMPTY local desk123"


def test_a_key_that_begins_as_another_one_does_is_hidden_whole() -> None:
    assert hidden(KEY[:-2], KEY, KEY[:-4])(f"{KEY} {KEY[:-2]} {KEY[:-4]}.") == "*** *** ***."
    assert hidden(KEY, KEY[:-6] + "zz9")(f"a {KEY[:-6]}zz9") == "a ***"


@given(key=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=8, max_size=40), text=st.text())
def test_whatever_the_key_it_is_nowhere(key: str, text: str) -> None:
    redaction = hidden(key)
    for spelling in (key, json.dumps(key)[1:-1], "\0".join(key)):
        assert key not in redaction(text + spelling + text)


@pytest.mark.parametrize(
    "text", ["s" * 300_000, "\\" * 300_000, "sk-this-" * 40_000, "s\0" * 150_000, KEY[:-1] * 9_000]
)
def test_long_texts_take_linear_time(text: str) -> None:
    assert len(hidden(KEY)(text)) <= len(text)  # quadratic time would be hours


def test_a_text_for_a_message_is_one_line_without_control_characters() -> None:
    redacted.hide(KEY)
    assert shown(f"a\nb\x1b[31m {KEY}\tc \0") == "a b[31m *** c"
    assert shown("x" * 195 + KEY) == "x" * 195 + "***"
    assert shown("x" * 300) == "x" * 200 + "…"


def test_a_traceback_in_a_log_is_clean(caplog: pytest.LogCaptureFixture) -> None:
    redacted.hide(KEY)
    log = logging.getLogger("httpx2")
    try:
        raise ValueError(f"illegal header line: {KEY}")
    except ValueError:
        log.warning("failed with %s", KEY, exc_info=True)
    assert "ValueError: illegal header line: ***" in caplog.text
    assert KEY not in caplog.text
