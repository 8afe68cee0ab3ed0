"""A client of any OpenEnv server whose actions can be written as texts, as a task set: a seed is a task.

OpenEnv (https://github.com/meta-pytorch/OpenEnv; BSD licence) serves environments with Gymnasium's methods over a
WebSocket. A play is a session of its own.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from pydantic import Field, FiniteFloat, SkipValidation

from retro.config import PositiveFloat, PositiveInt
from retro.envs.base import EnvironmentFailedError, StepResult
from retro.envs.options import checked
from retro.envs.seeds import Rules, SeededPlay, SeededTasks, echo
from retro.reading import cut
from retro.types import Task

_PAUSES = (0.1, 0.3, 0.9)
"""Seconds between tries for a session: a server needs a moment to end the last one."""
_OWN_FIELDS = ("done", "reward", "metadata")
"""Fields of every action or observation of OpenEnv."""
_MOST_SHOWN = 600


class OpenEnvTasks(SeededTasks):
    """A million seeds in each split; each is a task called ``seed-N``. The server gets the seed with every reset, and
    must play the same for the same seed.

    Args:
        url: the server, for example ``http://127.0.0.1:8000``.
        horizon: the step limit, which also counts invalid actions.
        action: the field of the action that takes what the actor writes; by default the only text field.
        actions: instead, what the actor may write: a mapping from each text to the action as JSON.
        observation: the field of the observation that the actor reads; by default the only text field, and the whole
            observation as JSON if there are several.
        reset: further arguments of every reset.
        return_range: the sums of rewards that count as a return of 0 and of 1; sums outside are clipped.
        success_at: the return from which a finished play is a success.
        timeout: seconds until an answer of the server.

    Raises:
        ValueError: for a server that does not answer, a field that it does not have, or a wrong option.
    """

    name = "openenv"
    kind = "openenv"
    blocking = True

    @checked
    def __init__(
        self,
        url: str,
        horizon: PositiveInt,
        action: str | None = None,
        actions: SkipValidation[Mapping[str, Any] | None] = None,
        observation: str | None = None,
        reset: SkipValidation[Mapping[str, Any] | None] = None,
        return_range: Annotated[Sequence[FiniteFloat], Field(min_length=2, max_length=2)] = (0.0, 1.0),
        success_at: FiniteFloat = 1.0,
        timeout: PositiveFloat = 60.0,
    ) -> None:
        if "@" in urlsplit(url).netloc:
            raise ValueError("openenv: url: holds a password, and the config is written to files: leave it out")
        self._url = url.rstrip("/")
        self._timeout = timeout
        self._reset = dict(reset or {})
        self._rules = Rules.of(self.name, return_range, success_at, horizon)
        schema = self._schema()
        self._actions = _actions(actions)
        self._action = None if self._actions else _field("action", action, schema["action"])
        self._observation = _field("observation", observation, schema["observation"], needed=False)

    def make(self, task: Task) -> OpenEnvPlay:
        return OpenEnvPlay(self, self.seed_of(task), self._rules)

    def session(self) -> Any:
        """A new session; a play has one of its own."""
        from openenv.core.generic_client import GenericEnvClient

        return GenericEnvClient(self._url, connect_timeout_s=self._timeout, message_timeout_s=self._timeout).sync()

    def opened(self, session: Any, seed: int) -> str:
        """The opening of a play."""
        return self.read(session.reset(**{**self._reset, "seed": seed}))

    def meant_by(self, text: str) -> Mapping[str, Any] | None:
        """The action as JSON; None if the text is none of the named ones."""
        if self._actions:
            named: Mapping[str, Any] | None = self._actions.get(text.casefold())
            return named
        return {str(self._action): text}

    @property
    def allowed(self) -> str:
        """The named actions, for a message."""
        return cut(", ".join(self._actions), _MOST_SHOWN)

    def read(self, result: Any) -> str:
        """The text of a result's observation."""
        observation = result.observation
        if self._observation is None:
            shown = {name: value for name, value in observation.items() if name not in _OWN_FIELDS}
            return json.dumps(shown, ensure_ascii=False)
        text = observation.get(self._observation)
        if not isinstance(text, str):
            raise EnvironmentFailedError(
                f"openenv: the observation's {self._observation!r} was {type(text).__name__}, not a text"
            )
        return text or "nothing"

    def _schema(self) -> Mapping[str, Any]:
        address = f"{self._url}/schema"
        try:
            answer = httpx.get(address, timeout=self._timeout).raise_for_status().json()
            return {part: answer[part]["properties"] for part in ("action", "observation")}
        except (httpx.HTTPError, httpx.InvalidURL, ValueError, KeyError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}"
            raise ValueError(f"openenv: url: no OpenEnv server answers at {address} ({problem}); start it") from None


class OpenEnvPlay(SeededPlay):
    """One play."""

    def __init__(self, tasks: OpenEnvTasks, seed: int, rules: Rules) -> None:
        super().__init__(seed, rules)
        self._tasks = tasks
        self._session = tasks.session()

    def reset(self, seed: int | None = None, options: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start over. The task is the seed that the server gets, so ``seed`` changes nothing."""
        for pause in (*_PAUSES, None):
            try:
                opening = self._tasks.opened(self._session, self._seed)
                break
            except _errors() as error:
                if pause is None or not _is_full(error):
                    raise _failed(error) from error
            self._session.close()  # the server has ended it
            time.sleep(pause)
            self._session = self._tasks.session()
        self.begin()
        return opening, {"success": False}

    def step(self, action: str) -> StepResult:
        if self.over is not None:
            return self.over
        self.played.append(action)
        meant = self._tasks.meant_by(action.strip())
        if meant is None:
            return self.count(f"{echo(action)} is not an action; allowed: {self._tasks.allowed}")
        try:
            result = self._session.step(meant)
            reward = float(result.reward or 0.0)
            seen = self._tasks.read(result)
        except _errors() as error:
            if _code(error) == "VALIDATION_ERROR":
                return self.count(f"{echo(action)} is not possible here: {_said(error)}")
            raise _failed(error) from error
        if not math.isfinite(reward):
            raise EnvironmentFailedError(f"openenv: the action {echo(action)} was rewarded with {reward}")
        return self.count(seen, reward, bool(result.done))

    def close(self) -> None:
        self._session.close()


def _failed(error: Exception) -> EnvironmentFailedError:
    if isinstance(error, EnvironmentFailedError):
        return error
    more = "; play fewer episodes at once (actor.concurrency), or let the server have more (max_concurrent_envs)"
    return EnvironmentFailedError(f"openenv: {_said(error)}{more if _is_full(error) else ''}")


def _errors() -> tuple[type[Exception], ...]:
    """What a session raises: the network's errors, the server's (RuntimeError), and those of an answer."""
    from websockets.exceptions import WebSocketException

    return OSError, RuntimeError, ValueError, WebSocketException


def _is_full(error: Exception) -> bool:
    """Whether the server has as many sessions as it may. It then says so, and closes at once: what arrives first
    counts."""
    return _code(error) == "CAPACITY_REACHED" or type(error).__name__ == "ConnectionClosedOK"


def _code(error: Exception) -> str:
    """What kind of error the server has reported; empty if it was none of the server's."""
    found = re.search(r"\(code: (\w+)\)$", str(error))
    return found[1] if found else ""


def _said(error: Exception) -> str:
    return cut(" ".join(str(error).split()) or type(error).__name__, _MOST_SHOWN)


def _actions(named: Any) -> dict[str, Mapping[str, Any]]:
    if named is None:
        return {}
    if not isinstance(named, Mapping) or not all(isinstance(value, Mapping) for value in named.values()):
        raise ValueError(f"openenv: actions: must be a mapping of texts to actions as JSON objects, not {named!r}")
    folded = {str(name).strip().casefold(): value for name, value in named.items()}
    if len(folded) < len(named) or "" in folded:
        raise ValueError(f"openenv: actions: two of {list(named)!r} are the same, or one is empty")
    return folded


def _field(of: str, named: str | None, properties: Mapping[str, Any], needed: bool = True) -> str | None:
    """The field that holds the text: the ``named`` one, or the only one that is a text; None if none was found and none
    is ``needed``."""
    fields = {name: value for name, value in properties.items() if name not in _OWN_FIELDS}
    if named is not None:
        if named not in fields:
            raise ValueError(f"openenv: {of}: the server's {of}s have no field {named!r}, but {', '.join(fields)}")
        return named
    texts = [name for name, value in fields.items() if value.get("type") == "string" and "enum" not in value]
    if len(texts) == 1:
        return texts[0]
    if needed:
        raise ValueError(
            f"openenv: {of}: the server's {of}s have the fields {', '.join(fields)}: name the one that takes the text, "
            "or give actions"
        )
    return None
