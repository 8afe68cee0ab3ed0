"""WebShop's search engine without Java: BM25 over product texts, with Lucene's English analysis.

Upstream asks Pyserini (Lucene: BM25 with k1 = 0.9, b = 0.4, English analyser). Here ``bm25s`` computes the same scores;
words are cut by nearly the same rule, stop words are Lucene's, stems are Porter's.
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
    """The words of ``text``, lower case, without an English possessive's end; stop words are still there."""
    found: list[str] = _WORD.findall(text.lower())
    return [word[:-2] if word.endswith(("'s", "’s")) else word for word in found]


class Analyser:
    """Words to the numbers of their stems. Each word is stemmed once."""

    def __init__(self, vocabulary: dict[str, int] | None = None) -> None:
        import Stemmer

        self.vocabulary: dict[str, int] = {} if vocabulary is None else vocabulary
        self._stem = Stemmer.Stemmer("porter").stemWord
        self._known: dict[str, int] = {}

    def learn(self, text: str) -> list[int]:
        """The stems of ``text``; new ones are given the next numbers."""
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
        """The stems of ``text`` that the vocabulary has."""
        stems = [self._stem(word) for word in words(text) if word not in STOP_WORDS]
        return [self.vocabulary[stem] for stem in stems if stem in self.vocabulary]


class SearchIndex:
    """Documents by number, found by words."""

    def __init__(self, scores: Any, analyser: Analyser) -> None:
        self._scores = scores
        self._analyser = analyser

    @classmethod
    def build(cls, texts: Iterable[str]) -> SearchIndex:
        """Index ``texts``, of which there must be one at least; a document's number is its place among them."""
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
        """The index that :meth:`save` wrote; its arrays stay on the disk and are read where they are needed."""
        scores = _bm25s().BM25.load(folder, mmap=True)
        return cls(scores, Analyser(scores.vocab_dict))

    def best(self, query: str, count: int) -> list[int]:
        """The numbers of at most ``count`` documents that share a stem with ``query``, the best first.

        Equal scores are ordered by number, as Lucene does.
        """
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
