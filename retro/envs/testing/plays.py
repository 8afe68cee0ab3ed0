"""The rules of a play."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import cycle, islice
from typing import Any

from retro.envs.base import Environment, StepResult, TaskSet
from retro.types import Task

INVALID_ACTIONS = ("", "zzqx", "zzqx " * 2000, "zzqx\nzzqx", "\x00")
"""An empty action, an unknown one, one of 10,000 characters, two at once, and one that is not text."""
MAX_OBSERVATION = 2000
"""The longest answer to an invalid action, in characters, so that it does not fill the actor's prompt."""

_TOLERANCE = 1e-9
_LONGEST = 300


def require(kept: bool, rule: str, seen: str) -> None:
    """Raise ``AssertionError`` with the rule and what was seen, unless it is kept."""
    if not kept:
        raise AssertionError(f"{rule}: {seen}")


def shown(value: object) -> str:
    """The repr of ``value`` for a message, cut if it is long."""
    text = repr(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"


@dataclass(frozen=True, slots=True)
class Turn:
    """What must be equal when a play is played again."""

    observation: str
    reward: float
    terminated: bool
    truncated: bool
    success: bool

    @property
    def over(self) -> bool:
        return self.terminated or self.truncated


@contextmanager
def made(taskset: TaskSet, task: Task) -> Iterator[Environment]:
    """A new environment of ``task``, which is closed twice at the end."""
    environment = taskset.make(task)
    rule = "an environment has the members of retro.envs.base.Environment (derive from it)"
    for member in ("reset", "step", "snapshot", "restore", "close"):
        require(hasattr(environment, member), rule, f"{type(environment).__name__} has no {member}")
    try:
        yield environment
    finally:
        environment.close()
    try:
        environment.close()
    except Exception as error:
        raise AssertionError(f"close() can be called twice: the second call raised {error!r}") from error


def reset(environment: Environment, seed: int) -> str:
    """Reset, and return the opening observation."""
    rule = 'reset() returns (opening, info): an opening that is not empty, and info["success"] False'
    answer = environment.reset(seed=seed)
    is_pair = isinstance(answer, tuple) and len(answer) == 2
    require(
        is_pair and isinstance(answer[0], str) and isinstance(answer[1], dict), rule, f"it returned {shown(answer)}"
    )
    opening, info = answer
    require(opening.strip() != "" and info.get("success") is False, rule, f"it returned {shown(answer)}")
    return opening


def step(environment: Environment, action: str) -> Turn:
    """Step, and check the answer."""
    rule = "whatever an actor writes is answered by an observation, never by an exception"
    try:
        result = environment.step(action)
    except Exception as error:
        raise AssertionError(f"{rule}: the action {shown(action)} raised {error!r}") from error
    return _turn(result, f"step({shown(action)}) returned {shown(result)}")


def _turn(result: StepResult, seen: str) -> Turn:
    is_result = isinstance(result, tuple) and len(result) == 5
    require(is_result, "step() returns a tuple (observation, reward, terminated, truncated, info)", seen)
    observation, reward, terminated, truncated, info = result
    require(isinstance(observation, str) and observation != "", "an observation is a text that is not empty", seen)
    is_number = isinstance(reward, float | int) and not isinstance(reward, bool)
    require(is_number and math.isfinite(reward), "a reward is a finite float", seen)
    are_flags = isinstance(terminated, bool) and isinstance(truncated, bool)
    require(are_flags, "terminated and truncated are True or False", seen)
    success = info.get("success") if isinstance(info, dict) else None
    require(isinstance(success, bool), 'info["success"] is True or False after every step', seen)
    require(terminated or not success, "success comes with terminated", seen)
    return Turn(observation, float(reward), terminated, truncated, bool(success))


def play(environment: Environment, actions: Sequence[str]) -> list[Turn]:
    """Step through ``actions`` until the play is over."""
    turns: list[Turn] = []
    for action in actions:
        turns.append(step(environment, action))
        if turns[-1].over:
            break
    return turns


def check_replays(taskset: TaskSet, task: Task, actions: Sequence[str], seed: int) -> None:
    """Equal actions play equally, in another environment and in the same one reset; the return stays in [0, 1]."""
    with made(taskset, task) as environment:
        opening = reset(environment, seed)
        turns = play(environment, actions)
        _check_return(turns, actions)
        if turns and turns[-1].over:
            _check_over(environment, turns[-1])
        rule = "an environment that is reset plays equally again"
        _check_opening(reset(environment, seed), opening, rule)
        _check_equal(play(environment, actions), turns, actions, rule)
    with made(taskset, task) as another:
        rule = "two plays of a task by the same actions and seed are equal"
        _check_opening(reset(another, seed), opening, rule)
        _check_equal(play(another, actions), turns, actions, rule)


def check_side_by_side(taskset: TaskSet, task: Task, actions: Sequence[str], seed: int) -> None:
    """Plays that run side by side do not affect one another."""
    with made(taskset, task) as environment:
        reset(environment, seed)
        alone = play(environment, actions)
    with made(taskset, task) as first, made(taskset, task) as second:
        reset(first, seed)
        half = len(alone) // 2
        before = play(first, actions[:half])
        reset(second, seed)
        play(second, tuple(reversed(actions)))
        turns = before + play(first, actions[half : len(alone)])
    _check_equal(turns, alone, actions, "plays that go on side by side do not touch one another")


def check_invalid_actions(taskset: TaskSet, task: Task, seed: int) -> None:
    """The answer to an invalid action is short."""
    rule = f"the answer to an invalid action has at most {MAX_OBSERVATION:,} characters"
    with made(taskset, task) as environment:
        for action in INVALID_ACTIONS:
            reset(environment, seed)
            turn = step(environment, action)
            _check_return([turn], [action])
            require(len(turn.observation) <= MAX_OBSERVATION, rule, f"{shown(action)} gave {shown(turn.observation)}")


def check_ends(taskset: TaskSet, task: Task, seed: int, max_steps: int) -> None:
    """A play of invalid actions ends, and then stays as it is."""
    actions = tuple(islice(cycle(INVALID_ACTIONS), max_steps))
    with made(taskset, task) as environment:
        reset(environment, seed)
        turns = play(environment, actions)
        rule = "every step counts, also an invalid one, so that every play ends"
        require(bool(turns) and turns[-1].over, rule, f"{len(turns)} invalid actions did not end it")
        _check_return(turns, actions)
        _check_over(environment, turns[-1])


def check_snapshot(taskset: TaskSet, task: Task, actions: Sequence[str], seed: int) -> None:
    """A snapshot is plain JSON, changes nothing, and a play continues equally from it; skipped if there is none."""
    with made(taskset, task) as environment:
        reset(environment, seed)
        turns = play(environment, actions)
        reset(environment, seed)
        half = len(turns) // 2
        play(environment, actions[:half])
        try:
            state = environment.snapshot()
        except NotImplementedError:
            return
        rest, script = turns[half:], actions[half : len(turns)]
        text = _as_json(state)
        _check_equal(play(environment, script), rest, script, "snapshot() does not touch the play")
        require(_as_json(state) == text, "a snapshot does not change while the play goes on", shown(state))
        environment.restore(json.loads(text))
        rule = "a play goes on from restore() as it did from snapshot()"
        _check_equal(play(environment, script), rest, script, rule)
    with made(taskset, task) as another:
        reset(another, seed)
        another.restore(json.loads(text))
        rule = "a snapshot can be restored in another environment of the same task"
        _check_equal(play(another, script), rest, script, rule)


def check_threads(taskset: TaskSet, task: Task, actions: Sequence[str], seed: int) -> None:
    """Different threads may make, reset, step and close a blocking environment."""
    with made(taskset, task) as environment:
        reset(environment, seed)
        turns = play(environment, actions)
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        environment = one.submit(taskset.make, task).result()
        try:
            other.submit(reset, environment, seed).result()
            threads = zip(actions[: len(turns)], cycle((one, other)), strict=False)
            threaded = [thread.submit(step, environment, action).result() for action, thread in threads]
        finally:
            other.submit(environment.close).result()
    _check_equal(threaded, turns, actions, "a blocking environment plays equally, whichever thread makes a call")


def _as_json(state: Any) -> str:
    rule = "a snapshot is plain JSON: str keys, lists, numbers, texts, True, False, None"
    try:
        text = json.dumps(state)
    except (TypeError, ValueError) as error:
        raise AssertionError(f"{rule}: {error}: {shown(state)}") from error
    require(json.loads(text) == state, rule, f"{shown(state)} comes back as {shown(json.loads(text))}")
    return text


def _check_return(turns: Sequence[Turn], actions: Sequence[str]) -> None:
    rule = "the rewards of a play add up to a return in [0, 1], wherever it breaks off"
    for count in range(1, len(turns) + 1):
        so_far = math.fsum(turn.reward for turn in turns[:count])
        seen = f"after step {count} ({shown(actions[count - 1])}) they add up to {so_far:g}"
        require(-_TOLERANCE <= so_far <= 1 + _TOLERANCE, rule, seen)


def _check_over(environment: Environment, last: Turn) -> None:
    rule = "a step after the end changes nothing: reward 0, the ends and success as they were"
    for action in ("zzqx", "look"):
        turn = step(environment, action)
        unchanged = replace(turn, observation="") == replace(last, observation="", reward=0.0)
        require(unchanged, rule, f"the play ended with {shown(last)}, a further step gave {shown(turn)}")


def _check_opening(opening: str, expected: str, rule: str) -> None:
    require(opening == expected, rule, f"it opens with {shown(opening)} instead of {shown(expected)}")


def _check_equal(turns: Sequence[Turn], expected: Sequence[Turn], actions: Sequence[str], rule: str) -> None:
    for number, (turn, other, action) in enumerate(zip(turns, expected, actions, strict=False), start=1):
        seen = f"step {number} ({shown(action)}) gave {shown(turn)} instead of {shown(other)}"
        require(turn == other, rule, seen)
    require(len(turns) == len(expected), rule, f"one ended after {len(turns)} steps, the other after {len(expected)}")
