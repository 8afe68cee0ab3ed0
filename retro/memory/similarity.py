"""Cosine similarity of texts; by TF-IDF, with scikit-learn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

MAX_CHARS = 20_000
"""Of a longer text only the beginning is compared."""
_WORD = re.compile(r"\b\w\w+\b")


class Index(Protocol):
    """Texts that can be compared with another text."""

    def similarities(self, text: str) -> list[float]:
        """The cosine between ``text`` and each indexed text."""
        ...


class TfIdf:
    """An index of texts that computes how similar each of them is to another text.

    The weights are those of scikit-learn's ``TfidfVectorizer`` with its defaults: the weight of a word is its count
    times ln((1 + n) / (1 + df)) + 1, for n texts of which df have the word; vectors have length 1; words that no
    indexed text has are ignored.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer  # here: importing it takes a second

        self._texts = len(texts)
        self._vectorizer = TfidfVectorizer(analyzer=words)
        known = any(map(words, texts))
        self._rows = self._vectorizer.fit_transform(texts) if known else None  # (texts, words)

    def similarities(self, text: str) -> list[float]:
        """The cosine between ``text`` and each indexed text, in [0, 1] up to rounding."""
        if self._rows is None:
            return [0.0] * self._texts
        found: list[float] = (self._rows @ self._vectorizer.transform([text]).T).toarray().ravel().tolist()
        return found


def words(text: str) -> list[str]:
    """The words of a text in order, in lower case."""
    return _WORD.findall(text[:MAX_CHARS].lower())
