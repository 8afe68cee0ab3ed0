"""Budgets: no call begins beyond the limit, and what is spent in the end is beyond it by less than one call."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retro.actors.budget import Budget, BudgetExceededError
from retro.config import BudgetSection, ConfigError
from retro.types import Usage
from tests.unit.wire.fake_time import FakeTimeLoop, run_in


async def spend(budget: Budget, estimate: Usage, used: Usage, seconds: float = 1.0) -> bool:
    """One call; whether it could begin."""
    try:
        await budget.reserve(estimate)
    except BudgetExceededError:
        return False
    await asyncio.sleep(seconds)
    budget.settle(estimate, used)
    return True


@settings(deadline=None)
@given(
    limit=st.integers(1, 3_000),
    calls=st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100), st.floats(0, 1)), min_size=1, max_size=60),
)
def test_the_limit_is_reached_and_passed_by_less_than_one_call(limit: int, calls: list[tuple[int, int, float]]) -> None:
    budget = Budget(BudgetSection(tokens=limit))

    async def all_at_once() -> list[bool]:
        spending = [
            spend(budget, Usage(prompt, completion), Usage(prompt, int(share * completion)), 0.1 + share)
            for prompt, completion, share in calls
        ]
        return await asyncio.gather(*spending)

    begun = run_in(FakeTimeLoop(), all_at_once())
    largest = max(prompt + completion for prompt, completion, _ in calls)
    assert budget.spent.total < limit + largest
    if not all(begun):
        assert budget.spent.total >= limit


def test_a_call_waits_for_what_those_under_way_will_really_cost() -> None:
    budget = Budget(BudgetSection(tokens=100))

    async def calls() -> list[bool]:
        return await asyncio.gather(*(spend(budget, Usage(10, 90), Usage(10, 10)) for _ in range(8)))

    assert run_in(FakeTimeLoop(), calls()) == [True] * 5 + [False] * 3
    assert budget.spent == Usage(50, 50)


def test_a_call_that_failed_costs_nothing() -> None:
    budget = Budget(BudgetSection(tokens=10))

    async def calls() -> list[bool]:
        return [await spend(budget, Usage(20, 20), Usage()) for _ in range(3)]

    assert run_in(FakeTimeLoop(), calls()) == [True] * 3
    assert budget.spent == Usage()


def test_who_is_cancelled_while_waiting_stops_nobody() -> None:
    budget = Budget(BudgetSection(tokens=10))

    async def calls() -> bool:
        first = asyncio.create_task(spend(budget, Usage(20, 0), Usage(4, 0)))
        await asyncio.sleep(0)
        waiting = asyncio.create_task(spend(budget, Usage(20, 0), Usage(4, 0)))
        third = asyncio.create_task(spend(budget, Usage(20, 0), Usage(4, 0)))
        await asyncio.sleep(0)
        waiting.cancel()
        assert await first
        return await third

    assert run_in(FakeTimeLoop(), calls())


def test_money_is_counted_by_the_prices_of_a_million() -> None:
    budget = Budget(BudgetSection(money=0.5, prompt_price=2.0, completion_price=8.0))
    assert asyncio.run(spend(budget, Usage(1, 1), Usage(100_000, 37_499), 0.0))
    assert budget.money == pytest.approx(0.499992)
    assert asyncio.run(spend(budget, Usage(1, 1), Usage(0, 1), 0.0))
    assert budget.money == pytest.approx(0.5)
    with pytest.raises(BudgetExceededError, match=r"actor\.budget\.money: 0\.5 of 0\.5 is spent, on 137,500 tokens"):
        asyncio.run(budget.reserve(Usage(1, 1)))


def test_the_message_says_what_is_spent_and_how_to_go_on() -> None:
    budget = Budget(BudgetSection(tokens=1_000))
    assert asyncio.run(spend(budget, Usage(1, 1), Usage(1_000, 234), 0.0))
    with pytest.raises(BudgetExceededError) as caught:
        asyncio.run(budget.reserve(Usage()))
    assert str(caught.value) == (
        "actor.budget.tokens: 1,234 of 1,000 tokens are spent; what was played is kept: raise actor.budget.tokens, run "
        "the same command again, and it goes on"
    )


def test_without_a_limit_it_only_counts() -> None:
    budget = Budget()
    assert asyncio.run(spend(budget, Usage(1, 1), Usage(10**9, 10**9), 0.0))
    assert budget.spent.total == 2 * 10**9


def test_a_run_spends_from_one_budget_however_often_it_is_resumed(tmp_path: Path) -> None:
    ledger = tmp_path / "run" / "actor_usage.jsonl"
    first, beside = (Budget(BudgetSection(tokens=100), ledger) for _ in range(2))
    assert asyncio.run(spend(first, Usage(1, 1), Usage(30, 5), 0.0))
    assert asyncio.run(spend(beside, Usage(1, 1), Usage(20, 5), 0.0))
    for budget in (first, beside, first):
        budget.keep()
    resumed = Budget(BudgetSection(tokens=100), ledger)
    assert resumed.spent == Usage(50, 10)
    assert asyncio.run(spend(resumed, Usage(1, 1), Usage(40, 0), 0.0))
    resumed.keep()
    assert len(ledger.read_text().splitlines()) == 3
    with pytest.raises(BudgetExceededError, match="100 of 100 tokens are spent"):
        asyncio.run(Budget(BudgetSection(tokens=100), ledger).reserve(Usage(1, 1)))


def test_a_ledger_that_is_none_is_named(tmp_path: Path) -> None:
    ledger = tmp_path / "actor_usage.jsonl"
    ledger.write_text('{"prompt_tokens": 1, "completion_tokens": 2}\n{"prompt')
    with pytest.raises(ConfigError, match=r"actor_usage\.jsonl: not what an actor spent"):
        Budget(BudgetSection(), ledger)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("[" * 20_000, "line 2: .*longer than 1,000 bytes"),
        ("[" * 400 + "]" * 400, "line 2: nested deeper"),
        (
            '{"prompt_tokens": 1, "completion_tokens": ' + "9" * 900 + "}",
            "line 2: 99999999999999999999….*beyond 64 bits",
        ),
        (
            '{"prompt_tokens": 1, "completion_tokens": 9223372036854775808}',
            "line 2: 9223372036854775808: .*beyond 64 bits",
        ),
        ('{"prompt_tokens": -5, "completion_tokens": 1}', "line 2: prompt_tokens: Input should be greater"),
        ('{"prompt_tokens": "many"}', "line 2: prompt_tokens: Input should be a valid integer"),
        ("[1, 2]", "line 2: the whole"),
        ("\udcff", "line 2: not UTF-8"),
    ],
)
def test_a_damaged_line_of_a_ledger_is_one_clear_line(tmp_path: Path, line: str, words: str) -> None:
    ledger = tmp_path / "actor_usage.jsonl"
    right = '{"prompt_tokens": 1, "completion_tokens": 2}\n'
    ledger.write_bytes(f"{right}{line}\n{right}".encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=words) as caught:
        Budget(ledger=ledger)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500
