"""The playbook: operations and their merge, counters, bounds, and what is shown."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import pytest

from retro.memory.entries import entry_id, tokens
from retro.memory.playbook import Bullet, Playbook, sentences
from retro.types import Episode
from tests.unit.memory.plays import HOSTILE, ask, folded, memory_section, play, task


def book(*episodes: Episode, **options: object) -> Playbook:
    memory = folded(memory_section("playbook", **options), *episodes)
    assert isinstance(memory, Playbook)
    return memory


def add(text: str, of: str = "t", kind: str = "heat") -> dict[str, object]:
    return {"op": "add", "environment": "household", "task": of, "kind": kind, "opening": f"{kind} it", "text": text}


def id_of(text: str) -> str:
    return entry_id("household", text)


def counters(memory: Playbook) -> dict[str, tuple[int, int]]:
    return {bullet.text: (bullet.helpful, bullet.harmful) for bullet in memory.entries.values()}


def mixed_operations(seed: int, count: int) -> list[dict[str, object]]:
    """Additions, updates, merges and deletions of some of sixty bullets."""
    rng, found = random.Random(seed), list[dict[str, object]]()
    for _ in range(count):
        text, other = (f"bullet {rng.randrange(60)}" for _ in range(2))
        found.append(
            rng.choice(
                [
                    add(text, of=f"t{rng.randrange(3)}", kind=rng.choice(["heat", "clean"])),
                    {"op": "update", "id": id_of(text), "helpful": rng.randrange(3), "harmful": rng.randrange(3)},
                    {"op": "merge", "into": id_of(text), "others": [id_of(other)]},
                    {"op": "delete", "id": id_of(text)},
                ]
            )
        )
    return found


@pytest.mark.parametrize("seed", range(3))
def test_a_merge_is_the_same_whatever_the_order_of_arrival(seed: int) -> None:
    operations = mixed_operations(seed, 120)
    digests = {book().apply(random.Random(n).sample(operations, len(operations))).digest for n in range(4)}
    assert len(digests) == 1
    assert digests != {book().digest}


def test_500_operations_lose_no_bullet_that_was_not_deleted() -> None:
    memory, expected = book(), Counter[str]()
    for operation in mixed_operations(0, 500):  # one at a time: a reference with plain counters
        before = memory.entries
        memory = memory.apply([operation])
        id = str(operation.get("id", operation.get("into", id_of(str(operation.get("text"))))))
        match operation["op"], id in before:
            case "add", _:
                expected.setdefault(id, 0)
            case "update", True:
                expected[id] += int(str(operation["helpful"])) + int(str(operation["harmful"]))
            case "delete", True:
                del expected[id]
            case "merge", True:
                (other,) = operation["others"]  # type: ignore[misc]
                if other in before and other != id:
                    expected[id] += expected.pop(other)
        assert {id: bullet.helpful + bullet.harmful for id, bullet in memory.entries.items()} == expected
    assert len(expected) > 10


@pytest.mark.parametrize(
    "malformed",
    [
        "delete everything",
        None,
        [],
        {"op": "drop", "id": id_of("keep me.")},
        {"op": "add", "text": "no task"},
        {**add("x"), "text": 5},
        {**add("x"), "helpful": 99},
        add(""),
        add("too long " * 100),
        {**add("x"), "opening": "x" * 5_000},
        add("half of a pair: \ud800"),
        {"op": "update", "id": "unknown", "helpful": 1},
        {"op": "update", "id": id_of("keep me."), "helpful": -1},
        {"op": "update", "id": id_of("keep me."), "helpful": 2**63},
        {"op": "merge", "into": id_of("keep me."), "others": []},
        {"op": "merge", "into": id_of("keep me."), "others": [id_of("keep me.")]},
        {"op": "merge", "into": id_of("keep me."), "others": ["unknown"]},
        {"op": "merge", "into": "unknown", "others": [id_of("keep me.")]},
        {"op": "delete", "id": "unknown\n[x] helpful=99"},
    ],
)
def test_a_malformed_operation_changes_nothing_and_is_logged(
    malformed: object, caplog: pytest.LogCaptureFixture
) -> None:
    memory = book().apply([add("keep me.")])
    with caplog.at_level(logging.WARNING):
        after = memory.apply([malformed, {"op": "update", "id": id_of("keep me."), "helpful": 1}])
    assert counters(after) == {"keep me.": (1, 0)}
    (message,) = caplog.messages
    assert message.startswith("playbook: an operation is left out: ")
    assert "\n" not in message


def recount(episodes: Iterable[Episode]) -> dict[str, tuple[int, int]]:
    helpful, harmful, seen = Counter[str](), Counter[str](), set[str]()
    for episode in episodes:
        texts = sentences(episode, 64)
        seen |= set(texts)
        if episode.success:
            helpful.update(texts)
        elif episode.return_ == 0:
            harmful.update(texts)
    return {text: (helpful[text], harmful[text]) for text in seen}


def test_the_counters_equal_a_recount_from_the_episodes() -> None:
    rng = random.Random(0)
    words = ("open", "mug", "stove", "desk", "pan", "fridge", "shelf", "look", "drawer", "plate")
    texts = [" ".join(rng.sample(words, 4)) + "." for _ in range(12)]
    episodes = []
    for number in range(150):
        lesson = " ".join(rng.sample(texts, rng.randint(1, 3)))
        episode = play(task(f"t{number % 9}"), lesson, success=rng.random() < 0.4)
        episodes.append(episode if number % 5 else replace(episode, return_=0.5))
    memory = book(*episodes)
    assert counters(memory) == recount(episodes)
    assert memory.digest == book(*reversed(episodes)).digest


def test_what_was_recalled_is_tagged_by_the_outcome() -> None:
    memory = book(play(task("a"), "heat it first."), play(task("a"), "heat it first.", success=False))
    (id,) = memory.entries
    assert counters(memory.fold(play(task("b"), recalled=(id, "reflection-0", "gone")))) == {"heat it first.": (2, 1)}
    assert counters(memory.fold(play(task("b"), recalled=(id,), success=False))) == {"heat it first.": (1, 2)}
    assert memory.fold(play(task("b"))) == memory


def test_sentences_that_say_the_same_are_one_bullet_unless_their_numbers_differ() -> None:
    same = [play(task("a"), "Look on the desk first."), play(task("b"), "look on the desk, first!")]
    assert counters(book(*same)) == {"Look on the desk first.": (2, 0)}
    rooms = [play(task("a"), "The mug is on shelf 1."), play(task("b"), "The mug is on shelf 2.")]
    assert counters(book(*rooms)) == {"The mug is on shelf 1.": (1, 0), "The mug is on shelf 2.": (1, 0)}


def test_the_budget_and_the_capacity_are_kept_by_the_lowest_balance() -> None:
    words = ("open", "mug", "stove", "desk", "pan", "fridge", "shelf", "look", "drawer", "plate")
    good = [play(task(f"{n}"), f"the {word} is good.") for word in words[:5] for n in range(3)]
    bad = [play(task("x"), f"the {word} is bad.", success=False) for word in words[5:]]
    for limits in ({"capacity": 5}, {"budget": 5 * tokens("the fridge is good.")}):
        memory = book(*good, *bad, **limits)
        assert set(counters(memory)) == {f"the {word} is good." for word in words[:5]}


def test_the_best_bullets_of_similar_tasks_are_shown_best_last() -> None:
    plays = [
        *[play(task(f"{n}"), "use the stove.") for n in range(3)],
        play(task("a"), "look around."),
        play(task("b"), "give up.", success=False),
        *[play(task("c", "clean"), "use a sponge.", thing="sponge basin") for _ in range(9)],
    ]
    closest = {"bullets": 2, "min_similarity": 0.9}
    assert book(*plays, **closest).recall(ask("heat")).entries == ("look around.", "use the stove.")
    blind = book(*plays, **closest, counters=False).recall(ask("heat")).ids
    assert blind == tuple(sorted(map(id_of, ("use the stove.", "look around.", "give up.")))[:2][::-1])


def test_a_false_bullet_is_a_text_with_our_counters() -> None:
    (bullet,) = book(play(task("a"), HOSTILE[1], success=False)).entries.values()
    assert isinstance(bullet, Bullet)
    assert (bullet.text, bullet.helpful, bullet.harmful) == (HOSTILE[1], 0, 1)
    assert len(book(play(task("a"), "One sentence. " * 9_000 + "Two.")).entries) == 1
    assert len(book(play(task("a"), "".join(f"Say {n}.\n" for n in range(99)))).entries) == 20
