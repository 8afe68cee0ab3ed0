"""Best-of-N keeps the highest score of each N."""

import asyncio
from collections.abc import Sequence

import pytest

from retro.retrospective.samplers.best_of import BestOf
from retro.types import (
    Episode,
    Reflection,
    ReflectionRequest,
    Reflector,
    Split,
    StopReason,
    Task,
    Trajectory,
    Usage,
)

EPISODE = Episode("e", Task("vault", "1", Split.TEST), 0, Trajectory("?"), 0.0, False, StopReason.FAILURE)


class Numbers:
    """Writes ``seed``, ``seed + 1``, …"""

    def __init__(self) -> None:
        self.requests: list[ReflectionRequest] = []

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        self.requests.append(request)
        return [
            Reflection(str(request.seed + index), "numbers", index, usage=Usage(100, index + 1))
            for index in range(request.count)
        ]


async def nearest_to_five(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
    return [-abs(int(reflection.text) - 5) for reflection in reflections]


def test_the_best_of_each_group_in_order_with_its_score_and_what_all_cost():
    reflector = Numbers()
    kept = asyncio.run(BestOf(reflector, nearest_to_five, 4).reflect(ReflectionRequest(EPISODE, 2)))
    assert [reflection.text for reflection in kept] == ["3", "5"]
    assert [reflection.score for reflection in kept] == [-2, 0]
    assert [reflection.index for reflection in kept] == [0, 1]
    assert [reflection.usage for reflection in kept] == [Usage(100, 1 + 2 + 3 + 4), Usage(100, 5 + 6 + 7 + 8)]
    assert [request.count for request in reflector.requests] == [8], "one prefill for all candidates"


def test_candidates_are_all_of_them_scored():
    candidates = asyncio.run(BestOf(Numbers(), nearest_to_five, 3).candidates(ReflectionRequest(EPISODE, seed=4)))
    assert [(reflection.text, reflection.score) for reflection in candidates] == [("4", -1), ("5", 0), ("6", -1)]


def test_among_equals_the_first():
    kept = asyncio.run(BestOf(Numbers(), nearest_to_five, 3).reflect(ReflectionRequest(EPISODE, seed=4)))
    tied = asyncio.run(BestOf(Numbers(), nearest_to_five, 2).reflect(ReflectionRequest(EPISODE, seed=5)))
    assert kept[0].text == "5"
    assert tied[0].text == "5"


def test_it_is_a_reflector_itself():
    assert isinstance(BestOf(Numbers(), nearest_to_five, 2), Reflector)
    nested = BestOf(BestOf(Numbers(), nearest_to_five, 2), nearest_to_five, 2)
    assert asyncio.run(nested.reflect(ReflectionRequest(EPISODE)))[0].text == "3"


def test_less_than_one_is_refused():
    with pytest.raises(ValueError, match="n ≥ 1"):
        BestOf(Numbers(), nearest_to_five, 0)


def test_a_scorer_that_returns_too_few_is_an_error():
    async def none(request: ReflectionRequest, reflections: Sequence[Reflection]) -> list[float]:
        return []

    with pytest.raises(ValueError):
        asyncio.run(BestOf(Numbers(), none, 2).reflect(ReflectionRequest(EPISODE)))
