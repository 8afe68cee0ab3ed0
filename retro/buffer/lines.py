"""An episode as one line of JSON. The buffer takes what a line can say, so whatever it holds is read back equal."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.reading import UnreadableError, cut, parse_json, problems
from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage, to_json


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was read."""

    episode: Episode
    says_recalled: bool
    """Whether the line says what the actor was shown; if not, ``episode.recalled`` is empty until it is derived."""


def read_line(line: bytes, rule: SplitRule) -> Line:
    """The episode of a line.

    Args:
        rule: the split of a task whose line names none.

    Raises:
        UnreadableError: saying what is wrong with it.
    """
    tree = parse_json(line)
    if not isinstance(tree, dict):
        raise UnreadableError(f"must be an object, not {type(tree).__name__}")
    try:
        return _Episode.model_validate(tree).line(rule)
    except ValidationError as error:
        raise UnreadableError(problems(error)) from None


def write_line(episode: Episode) -> bytes:
    """The line of an episode, its end included.

    Raises:
        EpisodeRefusedError: naming the episode and the field that JSON or UTF-8 cannot say.
    """
    try:
        return json.dumps(to_line(episode), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(episode, error) from None


def read_back(episode: Episode) -> Episode:
    """The episode as its line says it: equal, in plain types.

    Raises:
        EpisodeRefusedError: naming the episode and the field that no line can say: text with half of a surrogate pair,
            a number that is not finite, an ``info`` that is not JSON or nested too deeply …
    """
    try:
        return read_line(write_line(episode), SplitRule()).episode
    except UnreadableError as error:
        raise _refusal(episode, error) from None


def to_line(episode: Episode) -> dict[str, Any]:
    """``episode`` as one line's object."""
    tree = to_json(episode)
    task = tree.pop("task")
    first = {"id": tree.pop("id"), "environment": task["environment"], "task": task["id"]}
    tree["return"] = tree.pop("return_")
    return {**first, "split": task["split"], "kind": task["kind"], **tree}


def _refusal(episode: Episode, error: Exception) -> EpisodeRefusedError:
    try:
        problem = _fault(to_line(episode), "") or str(error)
    except RecursionError:
        problem = "info: nested too deeply, or holds itself"
    return EpisodeRefusedError(f"episode {episode.id!r}: {problem}")


def _fault(value: Any, path: str) -> str | None:
    """The innermost value that JSON cannot say, and why; None if there is none."""
    try:
        parse_json(json.dumps(value))
    except (TypeError, UnreadableError) as error:
        fault = f"{cut(path)}: {error}"
    else:
        return None
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    faults = (_fault(item, f"{path}.{key}" if path else str(key)) for key, item in inner)
    return next((found for found in faults if found is not None), fault)


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Usage(_Line):
    prompt_tokens: Annotated[int, Field(ge=0)] = 0
    completion_tokens: Annotated[int, Field(ge=0)] = 0


class _Step(_Line):
    action: str
    observation: str
    thought: str = ""
    reward: float = 0.0
    usage: _Usage = _Usage()

    def step(self) -> Step:
        return Step(**{**dict(self), "usage": Usage(**dict(self.usage))})


class _Trajectory(_Line):
    opening: str
    steps: list[_Step] = []


class _Reflection(_Line):
    text: str
    """May be empty: a model may end its answer at once."""
    source: str = "import"
    index: Annotated[int, Field(ge=0)] = 0
    finish_reason: Literal["stop", "length"] = "stop"
    usage: _Usage = _Usage()
    score: float | None = None


def _text_is_a_reflection(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


class _Recalled(_Line):
    entries: list[str] = []
    ids: list[str] = []

    @model_validator(mode="after")
    def _named(self) -> Self:
        if len(self.entries) != len(self.ids):
            raise ValueError(f"{len(self.entries)} entries with {len(self.ids)} ids: each entry has its id")
        return self


_NOT_NAMING: dict[str, Any] = {"trajectory": {"steps": {"__all__": {"usage"}}}, "recalled": True}
"""What does not tell an episode from another one: what each step cost, and what its trial and reflections decide."""


class _Episode(_Line):
    """The schema. Only what has no default is required."""

    environment: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    trajectory: _Trajectory
    return_: Annotated[float, Field(alias="return", ge=0, le=1)]
    success: bool
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    trial: Annotated[int, Field(ge=0)] = 0
    parent: str | None = None
    reflection: Annotated[_Reflection | None, BeforeValidator(_text_is_a_reflection)] = None
    recalled: _Recalled | None = None
    split: Split | None = None
    kind: str = ""
    stop: StopReason | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    usage: _Usage = _Usage()
    info: dict[str, Any] = {}

    def line(self, rule: SplitRule) -> Line:
        return Line(self._episode(rule), says_recalled=self.recalled is not None)

    def _episode(self, rule: SplitRule) -> Episode:
        reflection, recalled = self.reflection, self.recalled or _Recalled()
        return Episode(
            id=self.id or content_digest(["jsonl", self.model_dump(mode="json", exclude=_NOT_NAMING)]),
            task=Task(self.environment, self.task, self.split or rule.split(self.environment, self.task), self.kind),
            trial=self.trial,
            trajectory=Trajectory(self.trajectory.opening, tuple(step.step() for step in self.trajectory.steps)),
            return_=self.return_,
            success=self.success,
            stop=self.stop or (StopReason.SUCCESS if self.success else StopReason.FAILURE),
            parent=self.parent,
            reflection=None
            if reflection is None
            else Reflection(**{**dict(reflection), "usage": Usage(**dict(reflection.usage))}),
            recalled=Recalled(tuple(recalled.entries), tuple(recalled.ids)),
            seed=self.seed,
            usage=Usage(**dict(self.usage)),
            info=self.info,
        )
