"""Conversations and their rows: who gets room, who waits, who loses it; and that nobody waits for ever."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from retro.models.cache import RowPool, TokenShape
from retro.models.free_memory import divide_among, free_bytes
from retro.models.sessions import Placed, Request, Sessions

SHAPE = TokenShape(2, 2, 4, torch.float32, torch.device("cpu"))


def sessions(tokens: int) -> Sessions:
    """With room for rows of so many tokens in all."""
    return Sessions(RowPool(SHAPE, SHAPE.row_bytes(64) * tokens // 64))


def request(name: str, length: int, answer: int = 10) -> Request:
    return Request(name, np.arange(length), length + answer)


def turn(own: Sessions, requests: Sequence[Request], force: bool = False, most: int = 99) -> list[Placed | None]:
    placed = own.place(requests, most, force)
    for item in placed:
        if item is not None:
            own.keep(item, [1])
    return placed


def served(own: Sessions, *requests: Request, force: bool = False) -> list[bool]:
    return [placed is not None for placed in turn(own, requests, force)]


def test_a_new_conversation_waits_for_room_and_gets_that_of_one_that_has_ended() -> None:
    own = sessions(128)
    for name in "abc":
        own.hold(name)
    assert served(own, request("a", 20), request("b", 20), request("c", 20)) == [True, True, False]
    assert served(own, request("c", 20)) == [False], "a and b are held: they will ask again, or end"
    own.release("b")
    assert served(own, request("c", 20), request("a", 30)) == [True, True]
    own.release("a")
    own.release("c")
    assert own.pool.nbytes == 0


def test_what_is_known_of_a_conversation_is_not_computed_again() -> None:
    own = sessions(1024)
    own.hold("a")
    assert [placed.known for placed in turn(own, [request("a", 20)]) if placed] == [0]
    tokens = np.array([*range(20), 1, 7, 8])
    [placed] = turn(own, [Request("a", tokens, 130)])
    assert placed is not None and placed.known == 21 and placed.row.block.capacity == 192
    [placed] = turn(own, [Request("a", tokens[:5], 30)])
    assert placed is not None and placed.known == 4, "the last token is always computed"


def test_conversations_that_are_not_held_give_way_the_least_recently_used_first() -> None:
    own = sessions(192)
    for name in "abcab":
        assert served(own, request(name, 20)) == [True]
    own.hold("d")
    assert served(own, request("d", 20)) == [True]
    assert [placed.known for placed in turn(own, [request("a", 20), request("b", 20)]) if placed] == [19, 19]
    assert [placed.known for placed in turn(own, [request("c", 20)]) if placed] == [0]


def test_a_conversation_without_a_name_leaves_nothing_behind() -> None:
    own = sessions(1024)
    turn(own, [request("", 20), request("a", 20), request("a", 30)])
    assert own.pool.nbytes == SHAPE.row_bytes(64) * 3 and own.pool.take(64) is not None
    turn(own, [request("a", 20)])
    own.hold("a")
    own.release("a")
    own.release("a")
    assert own.pool.nbytes == SHAPE.row_bytes(64) * 3


def test_where_all_want_more_room_than_there_is_the_newest_loses_its_row() -> None:
    own = sessions(64 * 16)
    names = [f"{i:x}" for i in range(16)]
    for name in names:
        own.hold(name)
    assert all(served(own, *(request(name, 20) for name in names)))
    longer = [request(name, 100) for name in names]
    assert served(own, *longer) == [True] + 15 * [False], "a row of 128 takes the place of two of 64"
    again = turn(own, longer)
    assert again[0] is not None and again[0].known == 99


def test_no_more_of_them_lose_their_rows_than_have_to() -> None:
    own = sessions(64 * 5)
    for name in "abc":
        own.hold(name)
    assert all(served(own, *(request(name, 20) for name in "abc")))
    assert served(own, *(request(name, 180) for name in "abc")) == [True, False, False]
    assert [placed.known for placed in turn(own, [request("b", 20)]) if placed] == [19]
    for name in "ab":
        own.release(name)
    assert [placed.known for placed in turn(own, [request("c", 20)]) if placed] == [0]


def test_one_that_is_longer_than_all_room_is_played_alone() -> None:
    own = sessions(128)
    for name in "ab":
        own.hold(name)
    assert served(own, request("a", 20), request("b", 20)) == [True, True]
    assert served(own, request("a", 500), request("b", 500)) == [True, False]
    own.release("a")
    assert served(own, request("b", 500)) == [True]


def test_those_that_are_held_are_waited_for_unless_the_caller_cannot() -> None:
    own = sessions(64)
    own.hold("a")
    assert served(own, request("a", 20)) == [True]
    assert served(own, request("b", 20)) == [False]
    assert served(own, request("b", 20), force=True) == [True]
    assert [placed.known for placed in turn(own, [request("a", 20)]) if placed] == [0]


def test_room_is_kept_for_what_conversations_become() -> None:
    """After one has ended with 300 tokens, the others are expected to, and only as many are begun as fit then."""
    own = sessions(320 * 3)
    own.hold("first")
    served(own, request("first", 300))
    own.release("first")
    for name in "abcd":
        own.hold(name)
    assert served(own, *(request(name, 20) for name in "abcd")) == [True, True, True, False]


def test_free_rows_are_given_back_where_room_is_needed() -> None:
    pool = RowPool(SHAPE, SHAPE.row_bytes(64) * 8)
    rows = [row for row in (pool.take(64, 8) for _ in range(8)) if row is not None]
    for number, row in enumerate(rows):
        row.block.keys[0][row.index] = number
    for row in (rows[1], rows[2], rows[5], rows[6]):
        pool.give(row)
    assert pool.take(192) is not None
    for number in (0, 3, 4, 7):
        row = rows[number]
        assert (row.block.keys[0][row.index] == number).all()
    assert len({(id(row.block), row.index) for row in (rows[0], rows[3], rows[4], rows[7])}) == 4
    assert pool.nbytes == SHAPE.row_bytes(64) * 7


@given(
    seed=st.integers(0, 9999),
    room=st.integers(1, 12),
    count=st.integers(1, 9),
    held=st.floats(0, 1),
    most=st.integers(1, 9),
)
def test_every_conversation_comes_to_its_end(seed: int, room: int, count: int, held: float, most: int) -> None:
    """Whatever the room, the lengths, who is held and who asks when; and the budget is kept where one row fits it."""
    draw = random.Random(seed)
    own = sessions(64 * room)
    left = {f"c{i}": draw.randint(1, 6) for i in range(count)}
    lengths = {name: draw.randint(1, 60) for name in left}
    holding = {name for name in left if draw.random() < held}
    for name in holding:
        own.hold(name)
    fruitless = 0
    while left:
        asking = [name for name in left if draw.random() < 0.7] or list(left)
        placed = own.place([request(name, lengths[name], draw.randint(1, 80)) for name in asking], most, False)
        rows = [(id(item.row.block), item.row.index) for item in placed if item is not None]
        assert len(set(rows)) == len(rows) <= most
        fruitless = 0 if rows else fruitless + 1
        assert fruitless < 99
        if max(lengths.values()) + 80 < 64 * room // 4:
            assert own.pool.nbytes <= own.pool.budget
        for name, item in zip(asking, placed, strict=True):
            if item is None:
                continue
            assert item.known < lengths[name] and item.row.block.capacity >= lengths[name]
            own.keep(item, [1])
            lengths[name] += draw.randint(1, 60)
            left[name] -= 1
            if not left[name]:
                del left[name]
                if name in holding:
                    own.release(name)
    assert own.pool.nbytes == 0 or len(holding) < count


def test_there_is_some_memory_and_no_more_than_the_container_has(monkeypatch: pytest.MonkeyPatch) -> None:
    found = free_bytes(torch.device("cpu"))
    assert found > 2**20
    monkeypatch.setattr("retro.models.free_memory._left_in_container", lambda root: [2**19])
    assert free_bytes(torch.device("cpu")) == 2**19
    monkeypatch.setattr("retro.models.free_memory._processes", 1)  # what is set here is undone
    divide_among(4)
    assert free_bytes(torch.device("cpu")) == 2**17
