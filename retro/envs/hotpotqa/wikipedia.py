"""Wikipedia as it is today, or another MediaWiki, as a store of pages."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import SplitResult, urlsplit

from retro.envs.base import EnvironmentFailedError
from retro.envs.hotpotqa.documents import MOST_SIMILAR, DocumentStore, Page, title_key
from retro.envs.hotpotqa.mediawiki import MediaWiki

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


@dataclass(frozen=True, slots=True)
class WikipediaOptions:
    """How the server is asked; see :class:`retro.envs.hotpotqa.mediawiki.MediaWiki`."""

    base_url: str = "https://en.wikipedia.org/w/api.php"
    cache: str | None = None
    timeout_seconds: float = 20.0
    contact: str = ""
    max_retries: int = 5


def wikipedia_options(given: Mapping[str, Any]) -> WikipediaOptions:
    """The options of a config, checked.

    Raises:
        ValueError: names the option that is unknown or wrong.
    """
    if not isinstance(given, Mapping):
        raise ValueError(f"wikipedia must be a mapping of options, not {given!r}")
    known = [field.name for field in fields(WikipediaOptions)]
    unknown = sorted(set(given) - set(known))
    if unknown:
        raise ValueError(f"wikipedia: {unknown[0]!r} is no option; there are {', '.join(known)}")
    options = WikipediaOptions(**given)
    _check(options)
    return options


def _check(options: WikipediaOptions) -> None:
    address = _address(options.base_url)
    if address is None:
        raise ValueError("wikipedia: base_url must be the http(s) address of an api.php")
    if address.username or address.password:
        raise ValueError("wikipedia: base_url must hold no user name and no password: it is written to logs")
    if options.cache is not None and (not isinstance(options.cache, str) or not options.cache):
        raise ValueError(f"wikipedia: cache must be a file name, not {options.cache!r}")
    timeout = options.timeout_seconds
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < float("inf"):
        raise ValueError(f"wikipedia: timeout_seconds must be a number above 0, not {timeout!r}")
    if not isinstance(options.contact, str) or not options.contact.isascii() or not options.contact.isprintable():
        raise ValueError("wikipedia: contact must be one line of ASCII: it is part of an HTTP header")
    retries = options.max_retries
    if not isinstance(retries, int) or isinstance(retries, bool) or retries < 0:
        raise ValueError(f"wikipedia: max_retries must be a whole number from 0 on, not {retries!r}")


def _address(url: object) -> SplitResult | None:
    if not isinstance(url, str) or not url.isprintable() or " " in url:
        return None
    try:
        address = urlsplit(url)
        known = address.scheme in ("http", "https") and address.hostname and address.port != 0
    except ValueError:  # a port or an IPv6 address that is not one
        return None
    return address if known else None


class Wikipedia(DocumentStore):
    """The pages of a MediaWiki with the extensions TextExtracts and Disambiguator, as Wikipedia has them.

    Args:
        options: How the server is asked.
        pause: Waits for some seconds before a request is sent again.

    Raises:
        ValueError: if the cache is a file, but no cache of ours.
    """

    def __init__(self, options: WikipediaOptions, pause: Callable[[float], None] = time.sleep) -> None:
        self.wiki = MediaWiki(
            options.base_url, options.cache, options.timeout_seconds, options.contact, options.max_retries, pause
        )

    def search(self, entity: str) -> Page | list[str]:
        """The page of that title, redirects followed; else similar titles, as for a disambiguation page.

        A title that differs in case, diacritics and punctuation alone is opened, too, if the server finds it.
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
        """The page; of a disambiguation page its title alone; None where there is no page with text."""
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
        """By full text, as the search field of a wiki does; where that finds nothing, by the titles' letters."""
        words = " ".join(re.findall(r"[\w'’]+", entity))[
            :_MAX_QUERY_CHARS
        ]  # no sign that the search takes for an order
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
            raise EnvironmentFailedError(f"wikipedia: query.{name} of an answer is no list of objects")
        return rows


def _titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What can be the title of a page among those of an answer."""
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
