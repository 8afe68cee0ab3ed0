"""Keeps API keys out of texts and of the logs of HTTP libraries."""

from __future__ import annotations

import logging
import re

from retro.reading import cut

LEAST_SECRET_CHARS = 8
"""Shorter keys are words for servers of one's own (EMPTY, local), which may well occur in an answer."""
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
"""Loggers of the libraries. Each needs the filter, since the filters of parents do not apply. At DEBUG they log the
headers of answers, in which a server may repeat what it was sent."""
_HIDDEN = "***"
_BETWEEN = r"(?:[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff\ufffd]|\\{1,4}(?:[nrt0]|x00|u0000)){0,8}"
"""What may stand between two letters of a key: line breaks and the zero bytes of UTF-16 and UTF-32, also escaped as in
Python or JSON. Every repetition here is bounded, so that no text takes quadratic time."""


class Redaction(logging.Filter):
    """Replaces the keys that were handed to :meth:`hide` by asterisks.

    It finds a key in upper and lower case, with letters that are escaped as in JSON (also twice), Python, URLs or HTML,
    with line breaks or zero bytes between letters, and at the end of a text also the beginning of a key, from
    ``LEAST_SECRET_CHARS`` letters on. It does not find base64 or any other transformation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, tuple[re.Pattern[str], list[re.Pattern[str]]]] = {}

    def hide(self, key: str) -> None:
        """Replace ``key`` from now on, unless it is shorter than ``LEAST_SECRET_CHARS``."""
        if len(key) < LEAST_SECRET_CHARS:
            return
        letters = [_spellings(letter) for letter in key]
        start = re.compile(_BETWEEN.join(letters[:LEAST_SECRET_CHARS]), re.IGNORECASE)
        rest = [re.compile(_BETWEEN + letter, re.IGNORECASE) for letter in letters[LEAST_SECRET_CHARS:]]
        keys = {**self._keys, key: (start, rest)}
        self._keys = dict(
            sorted(keys.items(), key=lambda item: -len(item[0]))
        )  # longest first: one key may be the beginning of another
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __call__(self, text: str) -> str:
        """``text`` without keys. Redact before cutting: half a key in the middle of a text is not found."""
        for at_end in (False, True):  # whole keys first: a whole key may be the beginning of another
            for start, rest in self._keys.values():
                text = _without(text, start, rest, at_end)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record's message and its traceback; no record is dropped."""
        record.msg, record.args = self(record.getMessage()), None
        if record.exc_info:
            record.exc_text, record.exc_info = self(_FORMATTER.formatException(record.exc_info)), None
        return True


def _spellings(letter: str) -> str:
    """A pattern for the ways of writing ``letter``."""
    code = f"{ord(letter):02x}"
    return (
        rf"(?:\\{{1,4}}(?:u00|x){code}|%(?:25)?{code}|&\#0{{0,6}}{ord(letter)};?|&\#x0{{0,6}}{code};?"
        rf"|\\{{0,4}}{re.escape(letter)})"
    )


def _without(text: str, start: re.Pattern[str], rest: list[re.Pattern[str]], at_end: bool) -> str:
    """``text`` without the whole key, or with ``at_end`` without its beginning at the end of the text."""
    pieces, shown = [], 0
    for match in start.finditer(text):
        if match.start() < shown:
            continue
        end, found = match.end(), 0
        for letter in rest:
            following = letter.match(text, end)
            if following is None:
                break
            end, found = following.end(), found + 1
        # at the end of the text, half an escape or a few characters may follow the beginning of a key
        if len(text) - end < LEAST_SECRET_CHARS if at_end else found == len(rest):
            pieces += [text[shown : match.start()], _HIDDEN]
            shown = end
    return "".join([*pieces, text[shown:]])


_FORMATTER = logging.Formatter()

redacted = Redaction()
"""The redaction of this process, whose loggers are shared."""


def shown(text: str, chars: int = 200) -> str:
    """``text`` from outside, made fit for a message: without keys and control characters, short, on one line."""
    words = "".join(letter for letter in redacted(text) if letter.isspace() or letter.isprintable()).split()
    return cut(" ".join(words), chars)
