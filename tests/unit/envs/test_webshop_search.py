"""The search: words as Lucene cuts them, BM25 by its formula, ties by number, the same after saving."""

from __future__ import annotations

import math
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.envs.webshop.search import K1, STOP_WORDS, B, SearchIndex, words

DOCUMENTS = st.lists(
    st.lists(st.sampled_from(["mug", "sock", "lamp", "red", "the"]), max_size=8), min_size=1, max_size=9
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Women's Socks, 10.5 inch", ["women", "socks", "10.5", "inch"]),
        ("the lovers’ mug: Anna’s", ["the", "lovers", "mug", "anna"]),
        (
            "non-slip 4K/8K O'Neill U.S.A. 1,000 pcs,blue",
            ["non", "slip", "4k", "8k", "o'neill", "u.s.a", "1,000", "pcs", "blue"],
        ),
        ("pack 2.for all", ["pack", "2", "for", "all"]),
        ("★ – ", []),
    ],
)
def test_words_are_cut_as_lucene_cuts_them(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_stems_match_and_stop_words_do_not_count() -> None:
    index = SearchIndex.build(["a pillow cover", "covers for the pillows of cushions", "the lamp"])
    assert set(index.best("Covering the pillow's", 10)) == {0, 1}
    assert index.best("the of for", 10) == []
    assert index.best("unheard-of", 10) == []
    assert index.best("", 10) == []


def test_equal_scores_are_ordered_by_number() -> None:
    index = SearchIndex.build(["lamp", *["mug"] * 30, "mug mug"])
    assert index.best("mug", 5) == [31, 1, 2, 3, 4]
    assert index.best("mug", 50) == [31, *range(1, 31)]


def test_documents_without_a_word_are_indexed_too() -> None:
    assert SearchIndex.build(["", "the", "mug"]).best("mug", 10) == [2]


def by_formula(documents: list[list[str]], query: list[str]) -> list[tuple[float, int]]:
    """(score, number) by Robertson's and Lucene's formula, document by document; all words here are their own stems."""
    kept = [[word for word in document if word not in STOP_WORDS] for document in documents]
    average = sum(map(len, kept)) / len(kept)
    scored = []
    for number, document in enumerate(kept):
        counts, score = Counter(document), 0.0
        for word in query:
            holding = sum(word in other for other in kept)
            if counts[word]:
                rarity = math.log(1 + (len(kept) - holding + 0.5) / (holding + 0.5))
                score += rarity * counts[word] / (counts[word] + K1 * (1 - B + B * len(document) / average))
        if score > 0:
            scored.append((score, number))
    return scored


@given(DOCUMENTS, st.lists(st.sampled_from(["mug", "sock", "lamp", "red"]), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_scores_are_bm25(documents: list[list[str]], query: list[str]) -> None:
    documents = [*documents, ["lamp"]]  # one with a word that counts
    index = SearchIndex.build([" ".join(document) for document in documents])
    found = index.best(" ".join(query), len(documents))
    scored = {number: score for score, number in by_formula(documents, query)}
    assert sorted(found) == sorted(scored)
    in_order = [scored[number] for number in found]
    assert all(first >= second - 1e-5 for first, second in pairwise(in_order))
    for count in range(1, len(documents)):
        assert index.best(" ".join(query), count) == found[:count]


def test_a_saved_index_answers_alike(tmp_path: Path) -> None:
    index = SearchIndex.build(["red mug", "blue mug", "a red, red lamp"])
    index.save(tmp_path / "index")
    again = SearchIndex.load(tmp_path / "index")
    for query in ("red", "mug", "blue lamp", "reds", "nothing"):
        assert again.best(query, 3) == index.best(query, 3)
