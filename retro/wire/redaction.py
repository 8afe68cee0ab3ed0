"""Keys of APIs are kept out of texts and of what the HTTP libraries log."""

from __future__ import annotations

import logging
import re

from retro.reading import cut

LEAST_SECRET_CHARS = 8
"""A shorter key is a word that a server of one's own is given (EMPTY, local), which an answer may well contain."""
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
_BETWEEN = r"(?:[\s\x00-\x1f\x7f-\x9f\u200b-\u200f\u2060\ufeff\ufffd]|\\{1,4}(?:[nrt0]|x00|u0000)){0,8}"
"""What may stand between two letters of a key that is still readable: line breaks, the zero bytes of UTF-16 and UTF-32,
also as Python or JSON escapes them. Bounded, as every repetition here, so that no text takes quadratic time."""


class Redaction(logging.Filter):
    """Replaces the keys that it was told of by asterisks.

    A key is found in upper and lower case, with each letter as it is or escaped as JSON (also twice), Python, URLs or
    HTML do, with line breaks or zero bytes between letters, and where the text ends within it, after at least
    ``LEAST_SECRET_CHARS`` letters. Not in base64, nor any other transformation.
    """

    def __init__(self) -> None:
        super().__init__()
        self._keys: dict[str, tuple[re.Pattern[str], list[re.Pattern[str]]]] = {}

    def hide(self, key: str) -> None:
        """From now on ``key`` is replaced, also in the libraries' logs, unless it is shorter than
        ``LEAST_SECRET_CHARS``."""
        if len(key) < LEAST_SECRET_CHARS:
            return
        letters = [_spellings(letter) for letter in key]
        start = re.compile(_BETWEEN.join(letters[:LEAST_SECRET_CHARS]), re.IGNORECASE)
        rest = [re.compile(_BETWEEN + letter, re.IGNORECASE) for letter in letters[LEAST_SECRET_CHARS:]]
        keys = {**self._keys, key: (start, rest)}
        self._keys = dict(sorted(keys.items(), key=lambda item: -len(item[0])))  # one may begin as another does
        for name in _LOGGERS:
            logging.getLogger(name).addFilter(self)

    def __call__(self, text: str) -> str:
        """``text`` without keys. Redact before cutting: half a key in the middle of a text is not found."""
        for at_end in (False, True):  # whole keys first: another one may begin as a whole one does
            for start, rest in self._keys.values():
                text = _without(text, start, rest, at_end)
        return text

    def filter(self, record: logging.LogRecord) -> bool:
        """Clean the record's message and its traceback; it is logged in any case."""
        record.msg, record.args = self(record.getMessage()), None
        if record.exc_info:
            record.exc_text, record.exc_info = self(_FORMATTER.formatException(record.exc_info)), None
        return True


def _spellings(letter: str) -> str:
    """A pattern of the ways in which ``letter`` is written."""
    code = f"{ord(letter):02x}"
    return (
        rf"(?:\\{{1,4}}(?:u00|x){code}|%(?:25)?{code}|&\#0{{0,6}}{ord(letter)};?|&\#x0{{0,6}}{code};?"
        rf"|\\{{0,4}}{re.escape(letter)})"
    )


def _without(text: str, start: re.Pattern[str], rest: list[re.Pattern[str]], at_end: bool) -> str:
    """``text`` without the whole key, or without the beginning of one ``at_end``."""
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
        if _ends(text, end) if at_end else found == len(rest):
            pieces += [text[shown : match.start()], _HIDDEN]
            shown = end
    return "".join([*pieces, text[shown:]])


def _ends(text: str, place: int) -> bool:
    """Whether nothing is left of ``text``, except for half an escape or a few signs."""
    return len(text) - place < LEAST_SECRET_CHARS


_FORMATTER = logging.Formatter()

redacted = Redaction()
"""The one of this process: loggers are shared by all of it."""


def shown(text: str, chars: int = 200) -> str:
    """``text`` from outside for a message: without keys, on one line, without control characters, not too long."""
    words = "".join(letter for letter in redacted(text) if letter.isspace() or letter.isprintable()).split()
    return cut(" ".join(words), chars)
