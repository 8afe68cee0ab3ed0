"""TF-IDF as scikit-learn computes it."""

from __future__ import annotations

import math

import pytest

from retro.memory.similarity import MAX_CHARS, TfIdf


def test_a_case_computed_by_hand() -> None:
    index = TfIdf(["heat mug", "heat heat plate"])
    heat, rare = 1.0, math.log(3 / 2) + 1  # "heat" is in both texts
    first = heat / math.hypot(heat, rare)
    second = 2 * heat / math.hypot(2 * heat, rare)
    assert index.similarities("HEAT!") == pytest.approx([first, second])
    assert index.similarities("a mug, a mug, unknown") == pytest.approx([rare / math.hypot(heat, rare), 0])
    assert index.similarities("heat mug") == pytest.approx([1, first * second])


def test_texts_without_known_words_resemble_nothing() -> None:
    assert TfIdf(["", "a b", "mug"]).similarities("x y ??? spoon") == [0, 0, 0]
    assert TfIdf([]).similarities("mug") == []


def test_only_the_beginning_of_a_long_text_counts() -> None:
    assert TfIdf(["mug"]).similarities("spoon " * MAX_CHARS + "mug") == [0]
