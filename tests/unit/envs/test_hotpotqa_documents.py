"""The store that holds its pages: titles however they are written, similar ones in order."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro.envs.hotpotqa.documents import MOST_SIMILAR, OfflineDocuments, Page, folded, title_key

PAGES = [
    Page("Kallsund Bridge", ("The Kallsund Bridge is a swing bridge in Havnvik.", "It opened in 1909.")),
    Page("Marta Ellingsvold", ("Marta Ellingsvold was an engineer.", "Her best known work is the Kallsund Bridge.")),
    Page("José Ñandú", ("José Ñandú is a painter.",)),
    Page("Rock + Roll", ("A first album.",)),
    Page("Rock × Roll", ("A second album.",)),
    Page("owl", ("A bird.",)),
    Page("Owl", ("A magazine for children.",)),
    Page("!!!", ("!!! is a band of three exclamation marks.",)),
]


@pytest.fixture(scope="module")
def store() -> OfflineDocuments:
    return OfflineDocuments(PAGES)


@pytest.mark.parametrize(
    ("entity", "title"),
    [
        ("Kallsund Bridge", "Kallsund Bridge"),
        ("kallsund BRIDGE", "Kallsund Bridge"),
        ("Kallsund_Bridge", "Kallsund Bridge"),
        ('"Kallsund  Bridge".', "Kallsund Bridge"),
        ("Jose Nandu", "José Ñandú"),
        ("Jose\u0301 N\u0303andu\u0301", "José Ñandú"),  # as combining characters
        ("Rock + Roll", "Rock + Roll"),
        ("Owl", "Owl"),
        ("owl", "owl"),
        ("!!!", "!!!"),
    ],
)
def test_a_title_is_found_however_it_is_written(store: OfflineDocuments, entity: str, title: str) -> None:
    found = store.search(entity)
    assert isinstance(found, Page)
    assert found.title == title


@pytest.mark.parametrize(
    ("entity", "similar"),
    [
        ("rock & roll", ["Rock + Roll", "Rock × Roll"]),  # two could be meant
        ("OWL", ["owl", "Owl"]),
        ("Bridge of Kallsund", ["Kallsund Bridge", "Marta Ellingsvold"]),  # a word in the title counts for more
        ("engineers", ["Marta Ellingsvold"]),  # by its stem
        ("painter José", ["José Ñandú"]),
        ("Zanzibar", []),
        ("the of", []),
        ("???", []),
        ("", []),
    ],
)
def test_else_similar_titles_are_listed(store: OfflineDocuments, entity: str, similar: list[str]) -> None:
    assert store.search(entity) == similar


def test_at_most_so_many_are_listed_and_ties_keep_the_pages_order() -> None:
    store = OfflineDocuments(Page(f"Page {letter}", ("The same words.",)) for letter in "hgfedcbz")
    assert store.search("same words") == [f"Page {letter}" for letter in "hgfedcbz"[:MOST_SIMILAR]]


def test_of_two_pages_with_one_title_the_first_counts() -> None:
    store = OfflineDocuments([Page("Owl", ("First.",)), Page("Owl", ("Second.",))])
    assert len(store) == 1
    assert store.search("Owl") == Page("Owl", ("First.",))


@pytest.mark.parametrize("pages", [[], [Page("!!!", ("???",))], [Page("The", ("a",))]])
def test_pages_without_words_are_no_obstacle(pages: list[Page]) -> None:
    store = OfflineDocuments(pages)
    assert store.search("owl") == []
    assert [store.search(page.title) for page in pages] == pages


def test_threads_may_ask_at_once() -> None:
    store = OfflineDocuments(PAGES)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(store.search, ["bridges", "engineers"] * 50))
    assert found == [store.search("bridges"), store.search("engineers")] * 50


@given(st.text(max_size=40))
def test_any_text_can_be_searched(store: OfflineDocuments, text: str) -> None:
    found = store.search(text)
    assert isinstance(found, Page) or len(found) <= MOST_SIMILAR


@given(st.text(max_size=40))
def test_a_key_is_the_key_of_itself(text: str) -> None:
    assert title_key(title_key(text)) == title_key(text)


def test_folding() -> None:
    assert folded("José_Martí — Straße") == "jose marti — strasse"
    assert title_key("  “José”_Martí (poet) ") == "jose marti poet"
