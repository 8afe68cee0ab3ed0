"""Lessons by similarity and utility."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from retro.memory.retrieval import UtilityRetrieval
from tests.unit.memory.plays import ask, folded, memory_section, play, task

SECTION = memory_section("retrieval")


def bank(*episodes: object, **options: object) -> UtilityRetrieval:
    memory = folded(memory_section("retrieval", **options), *episodes)  # type: ignore[arg-type]
    assert isinstance(memory, UtilityRetrieval)
    return memory


def test_the_utility_is_an_exponential_mean_of_returns() -> None:
    outcomes = [True, False, False, True]
    memory = bank(*(play(task(f"t{n}"), "look first", success=good) for n, good in enumerate(outcomes)))
    (lesson,) = memory.entries.values()
    expected = 1.0
    for good in outcomes[1:]:
        expected = 0.95 * expected + 0.05 * good
    assert lesson.utility == pytest.approx(expected)
    assert lesson.tries == 4
    assert lesson.task == ""  # of several tasks: each of them may be reminded of it
    assert memory.recall(ask("heat", name="t0")).entries == ("look first",)


def test_the_utility_follows_a_rate_that_changes() -> None:
    outcomes = [n >= 100 for n in range(200)]
    (lesson,) = bank(*(play(task("t"), "look", success=good) for good in outcomes)).entries.values()
    assert lesson.utility > 0.95


def test_the_score_is_the_papers() -> None:
    good, bad = play(task("a"), "good"), play(task("b"), "bad", success=False)
    memory = bank(good, good, bad, similarity=0.25, exploration=0.5)
    lesson = {lesson.text: lesson for lesson in memory.entries.values()}
    near = [(0.8, lesson["good"]), (0.6, lesson["bad"])]
    scores = {
        "good": 0.25 * 0.8 + 0.75 * (1 + 0.5 * math.sqrt(math.log(3) / 2)),
        "bad": 0.25 * 0.6 + 0.75 * (0 + 0.5 * math.sqrt(math.log(3) / 1)),
    }
    for similarity, entry in near:
        assert memory._score(similarity, entry) == pytest.approx(scores[entry.text])
    assert [entry.text for entry in memory.choose(near, "")] == ["bad", "good"]  # the best stands last


def test_with_equal_utility_the_lesson_that_was_tried_less_is_preferred() -> None:
    often = [play(task("a"), "tried often")] * 20
    rarely = play(task("a"), "tried once")
    assert bank(*often, rarely, lessons=1).recall(ask("heat")).entries == ("tried once",)
    plain = bank(*often, play(task("a"), "failed once", success=False), lessons=1, exploration=0)
    assert plain.recall(ask("heat")).entries == ("tried often",)


def test_what_is_not_similar_is_not_shown() -> None:
    other = replace(play(task("b"), "buy less"), trajectory=replace(play(task("b")).trajectory, opening="A shop."))
    memory = bank(play(task("a"), "look first"), other)
    assert memory.recall(ask("heat")).entries == ("look first",)
    assert set(bank(play(task("a"), "look first"), other, min_similarity=0).recall(ask("heat")).entries) == {
        "look first",
        "buy less",
    }


def test_when_the_bank_is_full_the_least_useful_lesson_goes() -> None:
    plays = [play(task(f"t{n}"), f"lesson {n}", success=n % 3 > 0) for n in range(30)]
    memory = bank(*plays, capacity=20)
    assert {lesson.text for lesson in memory.entries.values()} == {f"lesson {n}" for n in range(30) if n % 3}


def test_only_reflections_are_lessons_and_long_ones_lose_their_end() -> None:
    assert not bank(play(task("a")), play(task("a"), "  ")).entries
    (lesson,) = bank(play(task("a"), "word " * 999), max_tokens=4).entries.values()
    assert lesson.text == "word word wor…"
