"""Rounds: what is asked together is answered together, in the order in which it was asked."""

from __future__ import annotations

import asyncio

import pytest

from retro.models.rounds import Rounds


class Recorder:
    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.rounds = Rounds(self.run)

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        if 13 in items:
            raise ValueError("thirteen")
        return [10 * item for item in items]


def test_concurrent_requests_form_one_batch_a_turn() -> None:
    recorder = Recorder()

    async def episode(number: int, turns: int) -> list[int]:
        answers = []
        for turn in range(turns):
            for _ in range(number % 4):  # some need a few passes of the loop before they ask
                await asyncio.sleep(0)
            answers.append(await recorder.rounds.submit(100 * number + turn))
        return answers

    async def play() -> list[list[int]]:
        return await asyncio.gather(*(episode(number, 3 + number % 2) for number in range(6)))

    answers = asyncio.run(play())
    assert answers[1] == [1000, 1010, 1020, 1030]
    assert [len(batch) for batch in recorder.batches] == [6, 6, 6, 3]
    again = Recorder()
    recorder, first = again, recorder.batches
    asyncio.run(play())
    assert again.batches == first


def test_an_error_reaches_every_caller_of_its_batch_and_no_other() -> None:
    recorder = Recorder()

    async def play() -> list[object]:
        first = await asyncio.gather(*(recorder.rounds.submit(number) for number in (12, 13)), return_exceptions=True)
        return [*first, await recorder.rounds.submit(14)]

    twelve, thirteen, fourteen = asyncio.run(play())
    assert isinstance(twelve, ValueError)
    assert isinstance(thirteen, ValueError)
    assert fourteen == 140


def test_a_cancelled_caller_is_left_out() -> None:
    recorder = Recorder()

    async def play() -> int:
        gone = asyncio.ensure_future(recorder.rounds.submit(1))
        stays = asyncio.ensure_future(recorder.rounds.submit(2))
        await asyncio.sleep(0)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        return await stays

    assert asyncio.run(play()) == 20
    assert recorder.batches == [[2]]


def test_a_second_event_loop_starts_afresh() -> None:
    recorder = Recorder()

    async def abandon() -> None:
        task = asyncio.ensure_future(recorder.rounds.submit(1))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(abandon())
    assert asyncio.run(recorder.rounds.submit(5)) == 50
    assert recorder.batches == [[5]]


def test_what_has_to_wait_is_part_of_the_next_round() -> None:
    """Rounds go on as long as one of them answers something; then one begins with the next item, or by hand."""
    batches: list[list[int]] = []
    room = {1}

    def run(items: list[int]) -> list[int | None]:
        batches.append(items)
        return [10 * item if item in room else None for item in items]

    async def rest() -> None:
        for _ in range(50):
            await asyncio.sleep(0)

    async def play() -> list[int]:
        rounds = Rounds(run)
        asked = [asyncio.ensure_future(rounds.submit(number)) for number in (1, 2, 3)]
        await rest()
        assert batches == [[1, 2, 3], [2, 3]] and asked[0].done() and not asked[1].done()
        room.add(2)
        asked.append(asyncio.ensure_future(rounds.submit(4)))
        await rest()
        assert batches[2:] == [[2, 3, 4], [3, 4]]
        room.update((3, 4))
        rounds.again()
        rounds.again()
        answers = await asyncio.gather(*asked)
        rounds.again()
        await rest()
        return answers

    assert asyncio.run(play()) == [10, 20, 30, 40]
    assert batches[4:] == [[3, 4]]
