"""Wikipedia as it is today, or another MediaWiki, as a store of pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, ConfigDict, Field, ValidationError

from retro.config import NonNegativeInt, PositiveFloat, Section
from retro.envs.base import EnvironmentFailedError
from retro.envs.hotpotqa.documents import MOST_SIMILAR, DocumentStore, Page, title_key
from retro.envs.hotpotqa.mediawiki import MediaWiki
from retro.reading import problems

_NOT_IN_TITLES = re.compile(r"[#<>\[\]{}|]")
_MAX_TITLE_BYTES = 255
_MAX_FOUND = 10
_MAX_QUERY_CHARS = 250
"""CirrusSearch refuses queries of more than 300."""
_HEADING = re.compile(r"=+ .* =+")
_SENTENCE_END = re.compile(r"[.!?][\"”’)\]]*(?=\s+[\"“‘(\[]?[^\Wa-z_])")
_ABBREVIATION = re.compile(
    r"[A-Z]|\w(?:\.\w)+|Ph\.D|Mrs?|Ms|Dr|Prof|Rev|Hon|Gen|Col|Lt|Maj|Capt|Sgt|Gov|Sen|Rep|St|Mt|Ft|[JS]r|Nos?|vs?|ca?|cf|approx"
    r"|Inc|Ltd|Co|Corp|Bros|Univ|Dept|est|op|fl|[bdr]|Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec"
)
"""Words whose full stop is their own: initials, ``U.S``, titles, months."""


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # a wrong port or IPv6 address
        usable = False
    if not usable or not url.isprintable() or " " in url:
        raise ValueError("must be the http(s) address of an api.php")
    if parts.username or parts.password:
        raise ValueError("must not hold a user name or a password, since it is written to logs")
    return url


def _header(text: str) -> str:
    if not text.isascii() or not text.isprintable():
        raise ValueError("must be one line of ASCII, since it is part of an HTTP header")
    return text


class WikipediaOptions(Section):
    """How the server is asked; :class:`retro.envs.hotpotqa.mediawiki.MediaWiki` explains each option."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)
    base_url: Annotated[str, AfterValidator(_address)] = "https://en.wikipedia.org/w/api.php"
    cache: Annotated[str, Field(min_length=1)] | None = None
    timeout_seconds: PositiveFloat = 20.0
    contact: Annotated[str, AfterValidator(_header)] = ""
    max_retries: NonNegativeInt = 5


def wikipedia_options(given: Mapping[str, Any]) -> WikipediaOptions:
    """The options of a config.

    Raises:
        ValueError: naming the option that is unknown or wrong.
    """
    try:
        return WikipediaOptions.model_validate(given)
    except ValidationError as error:
        known = ", ".join(WikipediaOptions.model_fields)
        raise ValueError(f"wikipedia: {problems(error)}; the options are {known}") from None


class Wikipedia(DocumentStore):
    """The pages of a MediaWiki with the extensions TextExtracts and Disambiguator, as Wikipedia has them.

    Args:
        pause: waits for some seconds before a request is sent again.

    Raises:
        ValueError: if the cache is a file of another kind.
    """

    def __init__(self, options: WikipediaOptions, pause: Callable[[float], None] = time.sleep) -> None:
        self.wiki = MediaWiki(**options.model_dump(), pause=pause)

    def search(self, entity: str) -> Page | list[str]:
        """The page of that title, after redirects; similar titles if there is none, or it is a disambiguation page.

        A page whose title differs only in case, diacritics and punctuation is opened, too, if the server finds it.
        """
        entity = " ".join("".join(char if char.isprintable() else " " for char in entity).split())
        found = self._page(entity)
        if isinstance(found, Page):
            return found
        similar = [title for title in self._similar(entity) if title != found]
        for title in similar:
            if found is None and title_key(title) == title_key(entity):
                page = self._page(title)
                if isinstance(page, Page):
                    return page
        return similar[:MOST_SIMILAR]

    def close(self) -> None:
        self.wiki.close()

    def _page(self, title: str) -> Page | str | None:
        """The page; only the title of a disambiguation page; None if there is no page with text."""
        if not title or _NOT_IN_TITLES.search(title) or len(title.encode()) > _MAX_TITLE_BYTES:
            return None
        found = self._asked(
            {"titles": title, "redirects": "1", "prop": "extracts|pageprops"}
            | {"explaintext": "1", "exsectionformat": "wiki", "exlimit": "1", "ppprop": "disambiguation"},
            "pages",
        )
        page = found[0] if found else {}
        titles = _titles(found[:1])
        if page.get("ns") != 0 or not titles:
            return None
        if isinstance(page.get("pageprops"), dict) and "disambiguation" in page["pageprops"]:
            return titles[0]
        sentences = split_sentences(str(page.get("extract") or ""))
        return Page(titles[0], tuple(sentences)) if sentences else None

    def _similar(self, entity: str) -> list[str]:
        """Titles by full text, as the search field of a wiki finds them; if there are none, by the titles' letters."""
        plain = " ".join(re.findall(r"[\w'’]+", entity))  # without signs that the search takes for operators
        words = plain[:_MAX_QUERY_CHARS]
        if not words:
            return []
        by_text = {"list": "search", "srsearch": words, "srlimit": str(_MAX_FOUND), "srprop": "", "srinfo": ""}
        titles = _titles(self._asked(by_text, "search"))
        if not titles:
            by_letters = {"list": "prefixsearch", "pssearch": words, "pslimit": str(_MAX_FOUND), "psprofile": "fuzzy"}
            titles = _titles(self._asked(by_letters, "prefixsearch"))
        return titles[:_MAX_FOUND]

    def _asked(self, parameters: Mapping[str, str], name: str) -> list[dict[str, Any]]:
        found = self.wiki.query(parameters).get("query", {})
        rows = found.get(name, []) if isinstance(found, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise EnvironmentFailedError(f"wikipedia: query.{name} of an answer is not a list of objects")
        return rows


def _titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The titles in the rows of an answer that can be the title of a page."""
    titles = (row.get("title") for row in rows)
    return [title for title in titles if isinstance(title, str) and 0 < len(title.encode()) <= _MAX_TITLE_BYTES]


def split_sentences(extract: str) -> list[str]:
    """The sentences of a plain text, line by line; headings (``== History ==``) are left out."""
    sentences = []
    for line in (" ".join(line.split()) for line in extract.splitlines()):
        if line and not _HEADING.fullmatch(line):
            sentences.extend(_split_line(line))
    return sentences


def _split_line(line: str) -> list[str]:
    sentences, begin = [], 0
    for match in _SENTENCE_END.finditer(line):
        word_begin = max(begin, line.rfind(" ", begin, match.start()) + 1)
        last_word = line[word_begin : match.start()].lstrip('"“‘([')
        if match[0].startswith(".") and _ABBREVIATION.fullmatch(last_word):
            continue
        sentences.append(line[begin : match.end()].strip())
        begin = match.end()
    return [*sentences, line[begin:].strip()]
