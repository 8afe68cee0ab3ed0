"""Any registered ``gymnasium.Env`` whose observations are texts, as a task set: a seed is a task.

The interface is Gymnasium's (https://gymnasium.farama.org/api/env/; MIT licence); any package may register one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Field, FiniteFloat, SkipValidation

from retro.config import PositiveInt
from retro.envs.base import EnvironmentFailedError, StepResult
from retro.envs.options import checked
from retro.envs.seeds import Rules, SeededPlay, SeededTasks, echo
from retro.reading import cut
from retro.types import Task

_MOST_LISTED = 600


class GymnasiumTasks(SeededTasks):
    """A million seeds in each split; each is a task called ``seed-N``.

    Args:
        id: a registered environment; ``module:Env-v0`` first imports the module that registers it.
        kwargs: the arguments of the environment.
        actions: what the actor may write. Needed unless actions are texts (``gymnasium.spaces.Text``): the names of a
            ``Discrete`` space's actions in their order, or a mapping from each text to the action as JSON.
        horizon: the step limit, which also counts invalid actions; by default the one that the environment is
            registered with.
        return_range: the sums of rewards that count as a return of 0 and of 1; sums outside are clipped.
        success_at: the return from which a finished play is a success, if its ``info`` has no ``success``.
        blocking: whether a step waits for another process or a server.

    Raises:
        ValueError: for an environment that cannot be made or has other observations than texts, unknown actions, or a
            wrong option.
    """

    name = "gymnasium"

    @checked
    def __init__(
        self,
        id: str,
        kwargs: Mapping[str, Any] | None = None,
        actions: SkipValidation[Sequence[str] | Mapping[str, Any] | None] = None,
        horizon: PositiveInt | None = None,
        return_range: Annotated[Sequence[FiniteFloat], Field(min_length=2, max_length=2)] = (0.0, 1.0),
        success_at: FiniteFloat = 1.0,
        blocking: bool = False,
    ) -> None:
        self._id = id
        self.kind = id.rpartition(":")[2]
        self._kwargs = dict(kwargs or {})
        self.blocking = blocking
        engine = self._engine()
        try:
            self._actions = _actions(engine.action_space, actions)
            limit = engine.spec.max_episode_steps if horizon is None else horizon
            if limit is None:
                raise ValueError("gymnasium: horizon: the environment is registered without a step limit: give one")
            self._rules = Rules.of(self.name, return_range, success_at, limit)
            opening = engine.reset(seed=0)[0]
        finally:
            engine.close()
        if not isinstance(opening, str):
            raise ValueError(
                f"gymnasium: {id!r} opens with {type(opening).__name__}, not with a text; register it with a "
                "gymnasium.ObservationWrapper that describes it"
            )

    def make(self, task: Task) -> GymnasiumPlay:
        return GymnasiumPlay(self._engine(), self.seed_of(task), self._actions, self._rules)

    def _engine(self) -> Any:
        import gymnasium

        try:
            return gymnasium.make(self._id, disable_env_checker=True, **self._kwargs)
        # Before 1.4, gymnasium only asserts that the id is a string.
        except (gymnasium.error.Error, AssertionError, ModuleNotFoundError, TypeError, ValueError) as error:
            raise ValueError(f"gymnasium: {self._id!r} cannot be made: {error}") from error


class GymnasiumPlay(SeededPlay):
    """One play."""

    def __init__(self, engine: Any, seed: int, actions: Actions, rules: Rules) -> None:
        super().__init__(seed, rules)
        self._engine = engine
        self._actions = actions

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The task is the seed that the environment gets, so ``seed`` changes nothing."""
        opening, _ = self._engine.reset(seed=self._seed, options=dict(options) if options else None)
        self.begin()
        return _text(opening), {"success": False}

    def step(self, action: str) -> StepResult:
        if self.over is not None:
            return self.over
        self.played.append(action)
        try:
            meant = self._actions.meant_by(action.strip())
        except KeyError:
            return self.count(f"{echo(action)} is not an action; allowed: {self._actions.allowed}")
        observation, reward, terminated, truncated, info = self._engine.step(meant)
        if not math.isfinite(reward):
            raise EnvironmentFailedError(f"gymnasium: the action {echo(action)} was rewarded with {reward}")
        success = bool(info["success"]) if "success" in info else None
        return self.count(_text(observation), float(reward), bool(terminated), bool(truncated), success)

    def close(self) -> None:
        self._engine.close()


class Actions(Protocol):
    """The texts that an actor may write, and the actions that they mean."""

    allowed: str
    """A few words that say what is allowed."""

    def meant_by(self, text: str) -> Any:
        """The environment's action.

        Raises:
            KeyError: if the text means none.
        """
        ...


class TextActions(Actions):
    """Every text of a ``gymnasium.spaces.Text``."""

    def __init__(self, space: Any) -> None:
        self._space = space
        self.allowed = cut(f"{space.min_length} to {space.max_length} characters of {space.characters!r}", _MOST_LISTED)

    def meant_by(self, text: str) -> str:
        if not self._space.contains(text):
            raise KeyError(text)
        return text


class NamedActions(Actions):
    """Named actions of any space; upper and lower case are the same."""

    def __init__(self, named: Mapping[str, Any]) -> None:
        self._named = {name.casefold(): action for name, action in named.items()}
        self.allowed = cut(", ".join(named), _MOST_LISTED)

    def meant_by(self, text: str) -> Any:
        return self._named[text.casefold()]


def _actions(space: Any, named: Sequence[str] | Mapping[str, Any] | None) -> Actions:
    from gymnasium import spaces

    if named is None:
        if isinstance(space, spaces.Text):
            return TextActions(space)
        raise ValueError(f"gymnasium: actions: the environment's are {space}, not texts: give their names")
    if isinstance(named, str) or not isinstance(named, Sequence | Mapping) or not all(_is_name(name) for name in named):
        raise ValueError(
            f"gymnasium: actions: must be a list of names, or a mapping of texts to actions, not {named!r}"
        )
    if len({name.casefold() for name in named}) < len(named):
        raise ValueError(f"gymnasium: actions: two of {list(named)!r} are the same")
    if isinstance(named, Mapping):
        return NamedActions({name: _action(space, name, value) for name, value in named.items()})
    if not isinstance(space, spaces.Discrete) or len(named) != space.n:
        raise ValueError(
            f"gymnasium: actions: {len(named)} names for {space}: give a mapping, or a name for each action"
        )
    return NamedActions({name: space.start + number for number, name in enumerate(named)})


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name.strip() == name != ""


def _action(space: Any, name: str, value: Any) -> Any:
    """JSON as an action of ``space``."""
    try:
        action = space.from_jsonable([value])[0]
    except (TypeError, ValueError, IndexError, KeyError):
        action = None
    if action is None or not space.contains(action):
        raise ValueError(f"gymnasium: actions: {name!r}: {value!r} is not an action of {space}")
    return action


def _text(observation: object) -> str:
    if not isinstance(observation, str):
        raise EnvironmentFailedError(f"gymnasium: an observation was {type(observation).__name__}, not a text")
    return observation or "nothing"
