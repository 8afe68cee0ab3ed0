"""What an actor behind an API may cost: counted, reserved before a call, and a stop at the limit."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from pydantic import NonNegativeInt, TypeAdapter, ValidationError

from retro.config import BudgetSection, ConfigError
from retro.reading import UnreadableError, parse_json, problems, read_lines
from retro.types import Usage, from_json, to_json

_MILLION = 1_000_000
_KEPT_EVERY_SECONDS = 1.0
"""What a killed process spent since its last line is not counted."""


_LONGEST_LINE = 1_000
_COUNTS = TypeAdapter(tuple[NonNegativeInt, NonNegativeInt])


class BudgetExceededError(RuntimeError):
    """The budget is spent: the run stops, and goes on where it was when the limit is raised."""


class Budget:
    """Lets calls begin while the limit is not reached by what was spent and what is reserved for calls under way.

    A call that would begin beyond it waits for those under way, as they may cost less than was reserved; it is an error
    once the limit is spent. So what is spent in the end is beyond the limit by less than one call, as far as estimates
    are not below what the calls cost.

    Args:
        section: The limits and the prices.
        ledger: A file of JSON lines with what was spent, one of a run: all its stages, and the run that resumes it,
            spend from one budget. None counts in memory alone.

    Raises:
        ConfigError: for a ledger that is none.
    """

    def __init__(self, section: BudgetSection = BudgetSection(), ledger: Path | None = None) -> None:  # noqa: B008
        self._section = section
        self._limited = section.tokens is not None or section.money is not None
        self._reserved = [0, 0]
        self._waiting: list[asyncio.Future[None]] = []
        self._ledger = ledger
        before = _read(ledger) if ledger and ledger.is_file() else Usage()
        self._spent = [before.prompt_tokens, before.completion_tokens]
        self._kept, self._kept_at = before, time.monotonic()

    @property
    def spent(self) -> Usage:
        """Tokens of all calls that were answered, those that the ledger held included."""
        return Usage(*self._spent)

    @property
    def money(self) -> float:
        """What :attr:`spent` costs, in the currency of the prices."""
        return self._cost(*self._spent)

    async def reserve(self, estimate: Usage) -> None:
        """Set aside what a call will cost at most; :meth:`settle` must follow.

        Raises:
            BudgetExceededError: if the limit is spent.
        """
        while self._limited and self._reached(self._spent[0] + self._reserved[0], self._spent[1] + self._reserved[1]):
            if self._reached(*self._spent):
                raise BudgetExceededError(self._stopped())
            await self._one_settled()
        self._reserved[0] += estimate.prompt_tokens
        self._reserved[1] += estimate.completion_tokens

    def settle(self, estimate: Usage, used: Usage = Usage()) -> None:  # noqa: B008 - it is frozen
        """Free what was reserved for a call, and charge what it used: nothing, if it was not answered."""
        self._reserved[0] -= estimate.prompt_tokens
        self._reserved[1] -= estimate.completion_tokens
        self._spent[0] += used.prompt_tokens
        self._spent[1] += used.completion_tokens
        if self._ledger and time.monotonic() - self._kept_at >= _KEPT_EVERY_SECONDS:
            self.keep()
        waiting, self._waiting = self._waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def keep(self) -> None:
        """Write to the ledger what was spent since the last line: one short append, whoever else appends."""
        new = Usage(self._spent[0] - self._kept.prompt_tokens, self._spent[1] - self._kept.completion_tokens)
        self._kept, self._kept_at = self.spent, time.monotonic()
        if self._ledger is None or not new.total:
            return
        self._ledger.parent.mkdir(parents=True, exist_ok=True)
        with self._ledger.open("a", encoding="utf-8") as file:
            file.write(json.dumps(to_json(new)) + "\n")

    async def _one_settled(self) -> None:
        future = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        await future

    def _reached(self, prompt_tokens: int, completion_tokens: int) -> bool:
        section = self._section
        if section.tokens is not None and prompt_tokens + completion_tokens >= section.tokens:
            return True
        return section.money is not None and self._cost(prompt_tokens, completion_tokens) >= section.money

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        section = self._section
        return (prompt_tokens * section.prompt_price + completion_tokens * section.completion_price) / _MILLION

    def _stopped(self) -> str:
        section, spent = self._section, self.spent
        if section.tokens is not None and spent.total >= section.tokens:
            key, figures = "tokens", f"{spent.total:,} of {section.tokens:,} tokens are spent"
        else:
            key = "money"
            figures = f"{self.money:.4g} of {section.money:.4g} is spent, on {spent.total:,} tokens"
        return (
            f"actor.budget.{key}: {figures}; what was played is kept: raise actor.budget.{key}, run the same command "
            "again, and it goes on"
        )


def _read(ledger: Path) -> Usage:
    spent = Usage()
    for number, line in read_lines(ledger, _LONGEST_LINE):
        try:
            usage = from_json(Usage, parse_json(line, limit=_LONGEST_LINE))
            _COUNTS.validate_python((usage.prompt_tokens, usage.completion_tokens))
        except (UnreadableError, ValidationError) as error:
            reason = problems(error) if isinstance(error, ValidationError) else str(error)
            raise ConfigError(
                f"{ledger}: not what an actor spent (line {number}: {reason}); correct the line, or delete it"
            ) from None
        spent += usage
    return spent
