"""Stores of pages, which answer an actor's searches: their protocol, and one with all pages in memory."""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any, Protocol

MOST_SIMILAR = 5
"""The largest number of titles that a search without a page returns."""

_MAX_QUERY_CHARS = 1_000
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, slots=True)
class Page:
    """One page of an encyclopaedia. A search shows its first sentences."""

    title: str
    sentences: tuple[str, ...]


class DocumentStore(Protocol):
    """Pages by title. Several threads may use it at once."""

    def search(self, entity: str) -> Page | list[str]:
        """The page called ``entity``; if there is none, up to ``MOST_SIMILAR`` similar titles, the most likely first.

        Raises:
            EnvironmentFailedError: if the store does not answer.
        """
        ...


def folded(text: str) -> str:
    """``text`` without case and diacritics, and with spaces for underscores: ``José_Martí`` → ``jose marti``."""
    if not text.isascii():
        text = "".join(char for char in unicodedata.normalize("NFKD", text) if not unicodedata.combining(char))
    return text.replace("_", " ").casefold()


def title_key(title: str) -> str:
    """A key that is equal for titles that differ only in case, diacritics, underscores, spaces and punctuation."""
    return " ".join(_WORD.findall(folded(title)))


class OfflineDocuments(DocumentStore):
    """Pages in memory. If two have the same title, the first is used.

    A page is found by its exact title, or by its :func:`title_key` if no other page has the same key. Otherwise titles
    are ranked by BM25 over titles (counted twice) and text, with an index that is built when it is first needed.
    """

    def __init__(self, pages: Iterable[Page]) -> None:
        self._pages: dict[str, Page] = {}
        for page in pages:
            self._pages.setdefault(page.title, page)
        self._by_key: dict[str, list[Page]] = {}
        for page in self._pages.values():
            self._by_key.setdefault(title_key(page.title), []).append(page)
        self._index: _Index | None = None
        self._ranking = Lock()

    def __len__(self) -> int:
        return len(self._pages)

    def search(self, entity: str) -> Page | list[str]:
        page = self._pages.get(entity)
        if page is not None:
            return page
        key = title_key(entity)
        alike = self._by_key.get(key, []) if key else []
        if len(alike) == 1:
            return alike[0]
        ranked = self.ranked(entity)
        return list(dict.fromkeys([page.title for page in alike] + ranked))[:MOST_SIMILAR]

    def ranked(self, query: str) -> list[str]:
        """The titles of the pages that fit ``query`` best, at most ``MOST_SIMILAR``; all share a word with it."""
        with self._ranking:  # a stemmer serves one thread at a time
            if self._index is None:
                self._index = _Index(list(self._pages.values()))
            return self._index.ranked(query)


class _Index:
    """BM25 (Lucene's variant, k1 = 1.5, b = 0.75) over English word stems, by the package bm25s."""

    def __init__(self, pages: Sequence[Page]) -> None:
        import bm25s
        import Stemmer

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it turns its own debug messages on
        self._titles = [page.title for page in pages]
        self._words: Any = partial(
            bm25s.tokenize,
            token_pattern=r"\w+",
            stopwords="en",
            stemmer=Stemmer.Stemmer("english"),
            show_progress=False,
        )
        words = self._words([folded(" ".join((page.title, page.title, *page.sentences))) for page in pages])
        self._bm25: Any = bm25s.BM25(backend="numpy")
        self._has_words = bool(words.vocab)  # without any, bm25s fails
        if self._has_words:
            self._bm25.index(words, show_progress=False)

    def ranked(self, query: str) -> list[str]:
        import numpy as np

        words = self._words([folded(query[:_MAX_QUERY_CHARS])], return_ids=False)[0]
        if not words or not self._has_words:
            return []
        scores = self._bm25.get_scores(words)
        least = np.partition(scores, -MOST_SIMILAR)[-MOST_SIMILAR] if len(scores) > MOST_SIMILAR else 0.0
        rows = np.flatnonzero((scores > 0) & (scores >= least))
        best = rows[np.argsort(-scores[rows], kind="stable")][:MOST_SIMILAR]  # stable: ties in the pages' order
        return [self._titles[row] for row in best]
