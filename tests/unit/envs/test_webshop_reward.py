"""The score, by hand: what counts as the same, as the kind of product, as an attribute, an option and a price."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.envs.webshop.catalogue import Product
from retro.envs.webshop.goals import Goal
from retro.envs.webshop.reward import (
    COLOURS,
    Score,
    colour,
    has_attribute,
    same_option,
    score,
    title_words,
    token_set_ratio,
    type_score,
)

KETTLE = Product(
    asin="B0KETT0001",
    name="Larkfell Copper Kettle with Wooden Handle",
    category="garden",
    query="kettles",
    product_category="Home & Kitchen › Kitchen › Kettles",
    description="It sings when it is HOT.",
    features=("Rust proof.", "Holds two litres."),
    price=30.0,
    price_tag="$30.0",
    options={"color": ("red", "blue"), "size": ("1 litre", "2 litre")},
    attributes=("easy clean", "long lasting"),
    instruction=None,
    instruction_attributes=(),
    human=(),
)
GOAL = Goal("by hand", KETTLE.asin, "a kettle", ("easy clean", "rust proof"), ("red", "2 litre"), 40.0)
TEXT = st.text("abc ", max_size=12)


@pytest.mark.parametrize(
    ("one", "other", "ratio"),
    [
        ("mug", "mug", 100),
        ("Mug, red!", "red mug", 100),
        ("red mug", "mug", 100),  # all words of one are in the other
        ("", "mug", 0),
        ("!", "!", 0),
        ("ab", "ac", 50),  # 2 · 1 / 4
        ("ab", "cd", 0),
        ("non slip", "non skid", 75),  # "non slip" and "non skid" share n, o, n, space, s, i: 2 · 6 / 16
        ("oil", "oils", 86),  # 2 · 3 / 7 = 85.7, rounded
    ],
)
def test_token_set_ratio_by_hand(one: str, other: str, ratio: int) -> None:
    assert token_set_ratio(one, other) == ratio


def common_by_table(one: str, other: str) -> int:
    table = [[0] * (len(other) + 1) for _ in range(len(one) + 1)]
    for row, first in enumerate(one):
        for column, second in enumerate(other):
            along = max(table[row][column + 1], table[row + 1][column])
            table[row + 1][column + 1] = table[row][column] + 1 if first == second else along
    return table[-1][-1]


@given(st.text("abcd", min_size=1, max_size=12), st.text("abcd", min_size=1, max_size=12))
def test_single_words_are_compared_by_their_longest_common_subsequence(one: str, other: str) -> None:
    assert token_set_ratio(one, other) == round(200 * common_by_table(one, other) / (len(one) + len(other)))


@given(TEXT, TEXT)
def test_token_set_ratio_knows_no_order(one: str, other: str) -> None:
    assert token_set_ratio(one, other) == token_set_ratio(other, one)
    assert token_set_ratio(one, other) == token_set_ratio(" ".join(reversed(one.split())), other)
    assert 0 <= token_set_ratio(one, other) <= 100


def test_colours_are_found_in_alphabetical_order_and_as_words() -> None:
    assert COLOURS.split() == sorted(COLOURS.split())
    assert [colour(value) for value in ("light blue", "red and black", "1877black", "a2-wine", "c5-army green")] == [
        "blue",
        "black",
        "black",
        "wine",
        "green",
    ]
    assert [colour(value) for value in ("embroidered", "standard", "xx-large")] == [
        "embroidered",
        "standard",
        "xx-large",
    ]


@pytest.mark.parametrize(
    ("wanted", "chosen", "same"),
    [
        ("light blue", "blue", True),
        ("light blue", "dark red", False),
        ("16 ounce (pack of 1)", "16 ounce", True),
        ("large", "x-large", True),  # all words of "large" are in "x large": upstream's rule has it so
        ("small", "large", False),
    ],
)
def test_options_mean_the_same(wanted: str, chosen: str, same: bool) -> None:
    assert same_option(wanted, chosen) is same


def test_title_words_are_words_that_name() -> None:
    assert title_words("Tarn 2-Port USB-C Charger for Your 4K TV, 30W (Pack of 2)") == {
        "tarn",
        "port",
        "usb",
        "charger",
        "tv",
        "pack",
    }


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, 1.0),
        ({"name": "Copper Pan", "query": "pans", "product_category": "Home & Kitchen › Pans"}, 0.5),  # 1 of 5 words
        ({"name": "Copper Kettle", "query": "pans", "product_category": "Pans"}, 1.0),  # 2 of 5 words
        ({"name": "Copper Pan", "query": "kettles", "product_category": "Pans"}, 1.0),
        ({"name": "Copper Pan", "query": "pans", "product_category": "Kitchen › Home & Kitchen"}, 1.0),
        ({"name": "Iron Pan"}, 0.0),  # no word of the title: not even the search it was found by helps
    ],
)
def test_the_kind_of_product(changes: dict[str, str], expected: float) -> None:
    assert type_score(replace(KETTLE, **changes), KETTLE) == expected  # type: ignore[arg-type]


def test_one_word_of_many_is_nearly_another_kind() -> None:
    wanted = replace(KETTLE, name="kettle of " + " ".join(f"word{'abcdefghijk'[place]}" for place in range(10)))
    assert len(title_words(wanted.name)) == 11
    assert type_score(replace(KETTLE, name="kettle"), wanted) == 0.1


def test_a_title_without_words_is_judged_by_the_rest() -> None:
    wanted = replace(KETTLE, name="8 x 10")
    assert type_score(KETTLE, wanted) == 1.0
    assert type_score(replace(KETTLE, query="pans", product_category="Pans"), wanted) == 0.5


@pytest.mark.parametrize(
    ("attribute", "has"),
    [
        ("easy clean", True),
        ("easy cleaning", True),  # nearly
        ("rust proof", True),  # word for word in a feature
        ("hot", True),  # in the description, whatever its case
        ("copper", True),
        ("dishwasher safe", False),
    ],
)
def test_attributes_are_looked_for_everywhere(attribute: str, has: bool) -> None:
    assert has_attribute(KETTLE, attribute) is has


@pytest.mark.parametrize(
    ("changes", "options", "expected"),
    [
        ({}, ["red", "2 litre"], Score(1.0, 2, 2, True, 5)),
        ({}, ["2 litre"], Score(1.0, 2, 1, True, 5)),
        ({}, ["red", "red"], Score(1.0, 2, 1, True, 5)),
        ({}, [], Score(1.0, 2, 0, True, 5)),
        ({"price": 40.0}, ["red", "2 litre"], Score(1.0, 2, 2, True, 5)),
        ({"price": 40.01}, ["red", "2 litre"], Score(1.0, 2, 2, False, 5)),
        ({"features": ()}, ["red", "2 litre"], Score(1.0, 1, 2, True, 5)),
        ({"name": "Pan"}, ["red", "2 litre"], Score(0.0, 2, 2, True, 5)),
    ],
)
def test_a_purchase_by_hand(changes: dict[str, object], options: list[str], expected: Score) -> None:
    bought = score(replace(KETTLE, **changes), options, GOAL, KETTLE)  # type: ignore[arg-type]
    assert bought == expected
    parts = expected.attributes + expected.options + expected.price
    assert bought.total == pytest.approx(expected.type * parts / 5)


def test_all_that_was_asked_for_is_exactly_one() -> None:
    assert score(KETTLE, ["red", "2 litre"], GOAL, KETTLE).total == 1.0
    plain = replace(GOAL, attributes=("easy clean",), options=(), price_limit=None)
    assert score(KETTLE, ["blue"], plain, KETTLE).total == 1.0


@given(
    options=st.lists(st.sampled_from(["red", "blue", "1 litre", "2 litre", "dark red"]), max_size=4),
    price=st.floats(0, 100),
    attributes=st.lists(st.sampled_from(["easy clean", "hot", "silent"]), min_size=1, max_size=3),
    name=st.sampled_from([KETTLE.name, "Copper Pan", "Pan"]),
)
def test_a_score_is_between_nothing_and_one(options: list[str], price: float, attributes: list[str], name: str) -> None:
    goal = replace(GOAL, attributes=tuple(attributes))
    total = score(replace(KETTLE, price=price, name=name, query="pans"), options, goal, KETTLE).total
    assert 0 <= total <= 1
