"""Cosine similarity of texts by TF-IDF."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

MAX_CHARS = 20_000
"""Of a longer text only the beginning is compared."""
_WORD = re.compile(r"\b\w\w+\b")


class TfIdf:
    """An index of texts that computes how similar each of them is to another text.

    Formula and words are those of scikit-learn's ``TfidfVectorizer`` with its defaults: the weight of a word is its
    count times ln((1 + n) / (1 + df)) + 1, for n texts of which df have the word; vectors have length 1; a word has at
    least two characters; words that no indexed text has are ignored.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [words(text) for text in texts]
        frequencies = Counter(word for count in counts for word in count)
        self._texts = len(texts)
        self._idf = {word: math.log((1 + len(texts)) / (1 + df)) + 1 for word, df in frequencies.items()}
        self._rows: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for row, count in enumerate(counts):
            for word, weight in self._vector(count).items():
                self._rows[word].append((row, weight))

    def similarities(self, text: str) -> list[float]:
        """The cosine between ``text`` and each indexed text, in [0, 1] up to rounding."""
        found = [0.0] * self._texts
        for word, weight in self._vector(words(text)).items():
            for row, other in self._rows[word]:
                found[row] += weight * other
        return found

    def _vector(self, count: Counter[str]) -> dict[str, float]:
        weights = {word: number * self._idf[word] for word, number in count.items() if word in self._idf}
        length = math.sqrt(math.fsum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


def words(text: str) -> Counter[str]:
    """The words of a text, in lower case, with their counts."""
    return Counter(_WORD.findall(text[:MAX_CHARS].lower()))
