"""WebShop's search engine without Java: BM25 over product texts, with Lucene's English analysis.

Upstream uses Pyserini (Lucene: BM25 with k1 = 0.9, b = 0.4, English analyser). Here ``bm25s`` computes the same
scores; the rule for words is nearly the same, stop words are Lucene's, and stems are Porter's.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

K1, B = 0.9, 0.4
LUCENE_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
STOP_WORDS = frozenset(LUCENE_STOP_WORDS.split())

_WORD = re.compile(  # Unicode's word boundaries in short: o'neill, u.s.a and 10.5 or 1,000 are one word each
    r"\w+(?:(?:(?<=[^\W\d_])[.'’](?=[^\W\d_])|(?<=\d)[.,'’](?=\d))\w+)*"
)
_STOPPED = -1


def words(text: str) -> list[str]:
    """The words of ``text`` in lower case, without the end of an English possessive; stop words included."""
    found: list[str] = _WORD.findall(text.lower())
    return [word[:-2] if word.endswith(("'s", "’s")) else word for word in found]


class Analyser:
    """Maps words to the numbers of their stems. Each word is stemmed once."""

    def __init__(self, vocabulary: dict[str, int] | None = None) -> None:
        import Stemmer

        self.vocabulary: dict[str, int] = {} if vocabulary is None else vocabulary
        self._stem = Stemmer.Stemmer("porter").stemWord
        self._known: dict[str, int] = {}

    def learn(self, text: str) -> list[int]:
        """The stems of ``text``. New stems get the next numbers."""
        found = []
        for word in words(text):
            number = self._known.get(word)
            if number is None:
                number = _STOPPED
                if word not in STOP_WORDS:
                    number = self.vocabulary.setdefault(self._stem(word), len(self.vocabulary))
                self._known[word] = number
            if number != _STOPPED:
                found.append(number)
        return found

    def read(self, text: str) -> list[int]:
        """The stems of ``text`` that are in the vocabulary."""
        stems = [self._stem(word) for word in words(text) if word not in STOP_WORDS]
        return [self.vocabulary[stem] for stem in stems if stem in self.vocabulary]


class SearchIndex:
    """Finds numbered documents by words."""

    def __init__(self, scores: Any, analyser: Analyser) -> None:
        self._scores = scores
        self._analyser = analyser

    @classmethod
    def build(cls, texts: Iterable[str]) -> SearchIndex:
        """Index ``texts``, at least one. A document's number is its index among them."""
        analyser = Analyser()
        documents = [analyser.learn(text) for text in texts]
        analyser.vocabulary.setdefault("", len(analyser.vocabulary))  # bm25s fails on an empty vocabulary
        scores = _bm25s().BM25(method="lucene", k1=K1, b=B)
        scores.index((documents, analyser.vocabulary), show_progress=False)
        return cls(scores, analyser)

    def save(self, folder: Path) -> None:
        """Write the index as NumPy arrays and JSON."""
        self._scores.save(folder)

    @classmethod
    def load(cls, folder: Path) -> SearchIndex:
        """The index that :meth:`save` wrote. Its arrays are memory-mapped."""
        scores = _bm25s().BM25.load(folder, mmap=True)
        return cls(scores, Analyser(scores.vocab_dict))

    def best(self, query: str, count: int) -> list[int]:
        """The numbers of at most ``count`` documents that share a stem with ``query``, best first, then by number."""
        stems = self._analyser.read(query)
        if not stems:
            return []
        scores = self._scores.get_scores_from_ids(stems)
        lowest = np.partition(scores, -count)[-count] if len(scores) > count else 0.0
        found = np.flatnonzero(scores >= lowest if lowest > 0 else scores > 0)
        order = np.lexsort((found, -scores[found]))[:count]
        return [int(number) for number in found[order]]


def _bm25s() -> Any:
    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it turns its own debug messages on
    return bm25s
