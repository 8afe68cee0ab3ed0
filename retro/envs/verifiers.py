"""Any text environment of the library verifiers, as a task set: a row of its tasks is a task, and its rewards are the
return.

verifiers (https://github.com/primeintellect-ai/verifiers; MIT licence) runs in a process of its own, because it needs
versions of packages that others do not. :mod:`retro.envs.verifiers_worker` is that process.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, NonNegativeInt, SkipValidation

from retro.config import PositiveFloat, PositiveInt
from retro.envs.base import EnvironmentFailedError, StepResult, TaskSet, UnknownTaskError
from retro.envs.child import Child
from retro.envs.options import checked
from retro.envs.seeds import Rules, SeededPlay
from retro.reading import cut, encodable
from retro.types import Split, Task

_SCRIPT = Path(__file__).with_name("verifiers_worker.py")
_MOST_SHOWN = 600


class VerifiersTasks(TaskSet):
    """The rows of an environment's tasks; each is a task called ``row-N``.

    Args:
        id: the environment, as verifiers calls it: an installed package, or a module of the working folder.
        horizon: the most messages that the actor may write in a play.
        config: further settings of the environment: what verifiers reads under ``env``, for example ``{taskset: {…}}``.
        rows: only so many of the first rows. Needed if there are tasks without end.
        shares: of so many rows that follow each other, how many are for training, validation and testing.
        python: the interpreter that has verifiers; by default this one.
        return_range: the sums of rewards that count as a return of 0 and of 1; sums outside are clipped.
        success_at: the return from which a finished play is a success.
        timeout: seconds until an answer of the environment.

    Raises:
        ValueError: for an environment that cannot be loaded or is not played by texts alone, or a wrong option.
    """

    name = "verifiers"
    blocking = True

    @checked
    def __init__(
        self,
        id: str,
        horizon: PositiveInt,
        config: SkipValidation[Mapping[str, Any] | None] = None,
        rows: PositiveInt | None = None,
        shares: Annotated[Sequence[NonNegativeInt], Field(min_length=3, max_length=3)] = (8, 1, 1),
        python: str | None = None,
        return_range: Annotated[Sequence[FiniteFloat], Field(min_length=2, max_length=2)] = (0.0, 1.0),
        success_at: FiniteFloat = 1.0,
        timeout: PositiveFloat = 60.0,
    ) -> None:
        if not any(shares):
            raise ValueError("verifiers: shares: one of the three must be above 0")
        self._rules = Rules.of(self.name, return_range, success_at, horizon)
        self._id = id
        self._request = {"id": id, "horizon": horizon, "config": dict(config or {}), "rows": rows}
        self._python = python or sys.executable
        self._timeout = timeout
        self._shares = dict(zip(Split, shares, strict=True))
        self._lock = threading.Lock()
        self._workers: list[Worker] = []
        weakref.finalize(self, _stop_all, self._workers)
        try:
            self._rows = self.worker().rows
        except EnvironmentFailedError as error:
            raise ValueError(str(error)) from None

    def tasks(self, split: Split, count: int, offset: int = 0) -> list[Task]:
        share, block = self._shares[split], sum(self._shares.values())
        first = sum(self._shares[before] for before in list(Split)[: list(Split).index(split)])
        rows = [row for row in range(self._rows) if first <= row % block < first + share]
        if offset + count > len(rows):
            raise ValueError(
                f"verifiers: {self._id!r} has {len(rows)} of its {self._rows} rows in the split {split} (shares), "
                f"{offset + count} were asked for"
            )
        return [Task(self.name, f"row-{row}", split, self._id) for row in rows[offset : offset + count]]

    def make(self, task: Task) -> VerifiersPlay:
        word, _, number = task.id.partition("-")
        if word != "row" or not number.isdecimal() or int(number) >= self._rows:
            raise UnknownTaskError(f"verifiers: no task {task.id!r}; ids are row-0 to row-{self._rows - 1}")
        return VerifiersPlay(self, int(number), self._rules)

    def worker(self) -> Worker:
        """The process that plays; a new one if it has died."""
        with self._lock:
            if not (self._workers and self._workers[0].alive):
                _stop_all(self._workers)
                self._workers.append(Worker(self._python, self._request, self._timeout))
            return self._workers[0]

    def close(self) -> None:
        with self._lock:
            _stop_all(self._workers)


class Worker(Child):
    """The process that plays. Any number of threads may each play in it at the same time.

    Args:
        python: the interpreter.
        request: what it loads.
        timeout: seconds until an answer.

    Raises:
        EnvironmentFailedError: if it cannot be started, or cannot load the environment.
    """

    def __init__(self, python: str, request: Mapping[str, Any], timeout: float) -> None:
        super().__init__("verifiers", [python, "-P", str(_SCRIPT)], _variables())
        self._timeout = timeout
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._answers: dict[int, SimpleQueue[dict[str, Any] | None]] = {}
        try:
            self.send(request)
            answer = json.loads(self.output.readline())
        except (OSError, ValueError):
            raise EnvironmentFailedError(
                f"verifiers: python: {python}: {self.ended()}; it must have verifiers: pip install 'verifiers>=0.4'"
            ) from None
        if "error" in answer:
            self.stop()
            raise EnvironmentFailedError(f"verifiers: {request['id']!r} cannot be played: {_shown(answer['error'])}")
        self.rows: int = answer["rows"]
        threading.Thread(target=self._read, daemon=True).start()

    def enter(self) -> int:
        """The number of a new play."""
        with self._lock:
            number = next(self._numbers)
            self._answers[number] = SimpleQueue()
        return number

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Send a request of a play, and wait for the answer.

        Raises:
            EnvironmentFailedError: if the environment failed or takes too long, or the process is gone.
        """
        answers = self._answers[request["play"]]
        self._tell(request)
        try:
            answer = answers.get(timeout=self._timeout)
        except Empty:
            raise EnvironmentFailedError(
                f"verifiers: no answer within {self._timeout:g} s (environment.options.timeout)"
            ) from None
        if answer is None:
            raise EnvironmentFailedError(f"verifiers: {self.ended()}")
        if "error" in answer:
            raise EnvironmentFailedError(f"verifiers: {_shown(answer['error'])}")
        return answer

    def leave(self, number: int) -> None:
        """End a play. Call it only once."""
        with self._lock:
            self._answers.pop(number, None)
        self._tell({"play": number, "do": "close"})

    def stop(self) -> None:
        """End the process, even if it still plays."""
        with self._lock:
            self.close_input()
        self.ended()

    def _tell(self, request: Mapping[str, Any]) -> None:
        with self._lock:
            try:
                self.send(request)
            except (OSError, ValueError):  # it died, or was stopped
                answers = self._answers.get(request["play"])
                if answers is not None:
                    answers.put(None)

    def _read(self) -> None:
        try:
            with self.output as lines:
                for line in lines:
                    answer = json.loads(line)
                    with self._lock:
                        answers = self._answers.get(answer["play"])
                    if answers is not None:  # somebody still plays
                        answers.put(answer)
        except ValueError:  # half a line: it died
            self.kill()
        finally:
            with self._lock:
                for answers in self._answers.values():
                    answers.put(None)


class VerifiersPlay(SeededPlay):
    """One play."""

    def __init__(self, tasks: VerifiersTasks, row: int, rules: Rules) -> None:
        super().__init__(row, rules)
        self._tasks = tasks
        self._row = row
        self._open: tuple[Worker, int] | None = None

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. ``seed`` changes nothing: the row is the task."""
        self.close()
        worker = self._tasks.worker()
        number = worker.enter()
        self._open = worker, number
        answer = worker.ask({"play": number, "do": "start", "row": self._row})
        if "total" in answer:
            raise EnvironmentFailedError(f"verifiers: row {self._row} ended before the actor could write")
        self.begin()
        return answer["observation"] or "nothing", {"success": False}

    def step(self, action: str) -> StepResult:
        if self.over is not None:
            return self.over
        self.played.append(action)
        if self._open is None:
            raise EnvironmentFailedError("verifiers: the play was closed")
        worker, number = self._open
        answer = worker.ask({"play": number, "do": "step", "action": encodable(action)})
        seen = answer["observation"] or "nothing"
        if "total" not in answer:
            return self.count(seen)
        total = answer["total"]
        if not math.isfinite(total):
            raise EnvironmentFailedError(f"verifiers: the play was rewarded with {total}")
        return self.count(seen, float(total), terminated=not answer["truncated"], truncated=answer["truncated"])

    def close(self) -> None:
        if self._open is not None:
            worker, number = self._open
            self._open = None
            worker.leave(number)


def _variables() -> dict[str, str]:
    """The caller's environment, with a fixed order of sets, and without a proxy for the requests within the process."""
    without = ",".join(filter(None, [os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1"]))
    return {**os.environ, "PYTHONHASHSEED": "0", "NO_PROXY": without, "no_proxy": without}


def _shown(text: str) -> str:
    return cut(" ".join(text.split()), _MOST_SHOWN)


def _stop_all(workers: list[Worker]) -> None:
    while workers:
        workers.pop().stop()
