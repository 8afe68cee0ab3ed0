"""The published script's scores, computed by hand."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.envs.hotpotqa.answers import exact_match, f1, normalised


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("The Tin Kettle!", "tin kettle"),
        ("  a   cat,\tan owl and the dog ", "cat owl and dog"),
        ("U.S.", "us"),
        ("Theatre", "theatre"),
        ("rock-and-roll", "rockandroll"),
        ("a-side", "aside"),  # punctuation goes before articles do
        ("Zürich – Genève", "zürich – genève"),  # ASCII punctuation alone
        ("The", ""),
    ],
)
def test_normalising(text: str, result: str) -> None:
    assert normalised(text) == result


@pytest.mark.parametrize(
    ("answer", "gold", "score"),
    [
        ("1909", "1909", 1.0),
        ("Tin Kettle", "The Tin Kettle.", 1.0),
        ("Kettle Tin", "Tin Kettle", 1.0),  # a bag of words
        ("the port of Havnvik", "Havnvik", 0.5),  # precision 1/3, recall 1
        ("3 June 1909", "1909", 0.5),
        ("June 1909", "3 June 1909", 0.8),  # precision 1, recall 2/3
        ("New New York", "New York", 0.8),  # each word counts as often as in the gold answer: precision 2/3, recall 1
        ("Bergen", "Oslo", 0.0),
        ("", "Oslo", 0.0),
        ("The", "A", 0.0),  # nothing is left of either: the script counts no word in common
        ("yes", "Yes.", 1.0),
        ("yes", "no", 0.0),
        ("yes they were", "yes", 0.0),  # 0.5 by its words
        ("no", "no country for old men", 0.0),
        ("noanswer", "noanswer given", 0.0),
        ("yes it is", "yes it was", 2 / 3),  # the rule is about whole answers
    ],
)
def test_f1(answer: str, gold: str, score: float) -> None:
    assert f1(answer, gold) == pytest.approx(score)


@pytest.mark.parametrize(
    ("answer", "gold", "same"),
    [
        ("an Owl", "owl", True),
        ("Owl, the", "owl", True),
        ("owls", "owl", False),
        ("Kettle Tin", "Tin Kettle", False),
        ("The", "A", True),
    ],
)
def test_exact_match(answer: str, gold: str, same: bool) -> None:
    assert exact_match(answer, gold) is same


@given(st.text(), st.text())
def test_f1_is_symmetric_and_a_fraction(one: str, other: str) -> None:
    assert f1(one, other) == f1(other, one)
    assert 0 <= f1(one, other) <= 1
    if exact_match(one, other) and normalised(one):
        assert f1(one, other) == 1


@given(st.text())
def test_normalising_twice_is_normalising_once_for_words_that_are_no_article(text: str) -> None:
    once = normalised(f"x {text} x")
    assert set(normalised(once).split()) <= set(once.split())
    assert not {"a", "an", "the"} & set(normalised(once).split())
