"""The types of the whole pipeline: tasks, steps, trajectories, episodes, reflections, actors and reflectors.

The values are frozen and become plain JSON by ``to_json``. This module imports nothing of ours.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from enum import StrEnum
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Protocol, TypedDict, TypeVar, cast, runtime_checkable

from pydantic import Field, TypeAdapter, ValidationError

Count = Annotated[int, Field(ge=0)]


class Split(StrEnum):
    """The use of a task. Everything that learns or selects is split by task, never by row."""

    TRAIN = "train"
    VALIDATION = "validation"
    TEST = "test"


class StopReason(StrEnum):
    """Why an episode ended."""

    SUCCESS = "success"
    """The environment terminated and reported success."""
    FAILURE = "failure"
    """The environment terminated without success (a wrong answer, say)."""
    HORIZON = "horizon"
    """The step limit was reached."""
    CONTEXT = "context"
    """The actor's next prompt did not fit its context, even shortened. The episode counts as failed."""
    ACTOR_ERROR = "actor_error"
    """The actor stopped answering (its server failed for good). The episode is reported, but does not count."""
    ENVIRONMENT_ERROR = "environment_error"
    """The environment failed (a worker process died). The episode is reported, but does not count."""
    ASKED = "asked"
    """The actor waits for advice. The loop has the attempt played on, so no recorded episode ends in this way."""


class Message(TypedDict):
    """One turn of a chat prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[Message]
"""A prompt of a language model: plain text for completion models, messages for chat models."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance of an environment. ``(environment, id)`` alone rebuilds it."""

    environment: str
    id: str
    split: Split
    kind: str = ""
    """The type of the task within its environment (``heat``, ``bridge question``). Results are also given by kind."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens spent on model calls."""

    prompt_tokens: Count = 0
    completion_tokens: Count = 0

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.prompt_tokens + other.prompt_tokens, self.completion_tokens + other.completion_tokens)

    @property
    def total(self) -> int:
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a completion is drawn. ``seed`` belongs to this one draw (see :func:`derive_seed`)."""

    temperature: float = 0.0
    top_p: float = 1.0
    max_tokens: int = 128
    stop: tuple[str, ...] = ()
    seed: int = 0
    session: str = ""
    """Requests of one session extend the same prompt, so that a prompt cache may use it as a key. May be empty."""


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer of a language model."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of an episode: the actor's thought and action, and the environment's answer."""

    action: str
    observation: str
    reward: float = 0.0
    thought: str = ""
    usage: Usage = Usage()
    """The tokens of the actor's request."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The ordered steps of one attempt; ``opening`` is the observation of the reset, which states the task."""

    opening: str
    steps: tuple[Step, ...] = ()


@dataclass(frozen=True, slots=True)
class Reflection:
    """The text the retrospective model wrote about one failed episode."""

    text: str
    source: str
    """Who wrote it: ``base``, ``sft``, ``ppo``, ``oracle``, the name of a model or of a log."""
    index: Count = 0
    """Its index in the group of reflections that were sampled for the same failed episode."""
    finish_reason: Literal["stop", "length"] = "stop"
    usage: Usage = Usage()
    score: float | None = None
    """The reward model's score, where one was asked (Best-of-N)."""


@dataclass(frozen=True, slots=True)
class Advice:
    """A reflection that an actor asked for in the middle of an episode, and the index of the step that asked."""

    step: Count
    reflection: Reflection


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the actor's memory recalled for one episode: the entries as they stood in its prompt, in order.

    Raises:
        ValueError: if there are not as many ids as entries.
    """

    entries: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    """A name for each entry, such as an episode's id (``reflection-2``: the third one that led to this episode)."""

    def __post_init__(self) -> None:
        if len(self.entries) != len(self.ids):
            raise ValueError(f"{len(self.entries)} entries with {len(self.ids)} ids: each entry has its id")

    @classmethod
    def latest(cls, reflections: Sequence[str], count: int) -> Recalled:
        """The last ``count`` of the ``reflections`` that led to an episode, oldest first."""
        first = max(0, len(reflections) - count)
        return cls(tuple(reflections[first:]), tuple(f"reflection-{n}" for n in range(first, len(reflections))))


@dataclass(frozen=True, slots=True)
class RecalledEntries(Recalled):
    """Entries of a bank with what they consist of, so that prompts may put them into words of their own.

    Raises:
        ValueError: if there are not as many facts as entries.
    """

    facts: tuple[Mapping[str, Any] | None, ...] = ()
    """Of each entry: ``kind``, the kind of task that it was learnt from, and ``steps``, those of a procedure. None for
    a reflection on the task itself."""

    def __post_init__(self) -> None:
        Recalled.__post_init__(self)
        if len(self.facts) != len(self.entries):
            raise ValueError(f"{len(self.entries)} entries with the facts of {len(self.facts)}")


@dataclass(frozen=True, slots=True)
class Episode:
    """One attempt at a task. Episodes form a tree: ``parent`` is the failed episode that this one retries.

    ``reflection`` is the one that preceded the retry; a retry without one (``parent`` set, ``reflection`` None) is a
    control.
    """

    id: str
    task: Task
    trial: int
    trajectory: Trajectory
    return_: float
    """Graded, in [0, 1]."""
    success: bool
    stop: StopReason
    parent: str | None = None
    reflection: Reflection | None = None
    recalled: Recalled = Recalled()
    """What its actor was shown from earlier trials or other tasks."""
    seed: int = 0
    usage: Usage = Usage()
    """The actor's tokens, without the reflection's."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Any further facts, as plain JSON: the name of a log, the text of an error."""

    @property
    def broken(self) -> bool:
        """Whether an error of the actor or the environment ended it: it is reported, and played again on resuming."""
        return self.stop in (StopReason.ACTOR_ERROR, StopReason.ENVIRONMENT_ERROR)

    @property
    def broken_by(self) -> str:
        """For messages: whose error ended a broken episode."""
        return "environment" if self.stop is StopReason.ENVIRONMENT_ERROR else "actor"

    @property
    def failed(self) -> bool:
        """Whether it was played to its end without success, and so deserves a reflection."""
        return not self.success and not self.broken

    @property
    def advice(self) -> tuple[Advice, ...]:
        """What its actor was given, as ``info["advice"]`` records it; a log may use this key for something else."""
        if "advice" not in self.info:
            return ()
        try:
            given: tuple[Advice, ...] = _adapter(tuple[Advice, ...]).validate_python(self.info["advice"])
        except ValidationError:
            return ()
        return given

    def without_advice(self) -> Episode:
        """The episode without the steps in which its actor got advice: what it did in the environment alone."""
        asked = {given.step for given in self.advice}
        kept = tuple(step for index, step in enumerate(self.trajectory.steps) if index not in asked)
        return replace(self, trajectory=replace(self.trajectory, steps=kept)) if asked else self


class ActorError(RuntimeError):
    """The actor cannot answer this request, and a retry would not help. It ends the episode, not the run.

    Its text is kept with the episode, so it names the problem and holds no secrets.
    """


@dataclass(frozen=True)
class TokenLimit:
    """The limit of a prompt: ``count(text)``, in tokens of the model that reads it, is at most ``max_tokens``."""

    count: Callable[[str], int]
    max_tokens: int
    key: str = "the limit"
    """The config key that raises the limit."""

    def fits(self, text: str) -> bool:
        """Whether ``text`` is within the limit. A token is at least one byte, so a text with few bytes always fits."""
        return len(text.encode()) + self._around <= self.max_tokens or self.count(text) <= self.max_tokens

    @cached_property
    def _around(self) -> int:
        """The tokens of a chat template around an empty text."""
        return self.count("")


@runtime_checkable
class Actor(Protocol):
    """The frozen language model that acts.

    An actor may also have ``prompt_limit: TokenLimit | None``: older observations are then left out of longer prompts.
    It may also have ``conversation(session)``, a context manager: an episode stays in it while it asks the actor.
    """

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``. Many requests may be under way at once.

        Raises:
            ActorError: if this one request failed for good.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReflectionRequest:
    """A request for ``count`` reflections on ``episode``, each with a seed that is derived from ``seed``."""

    episode: Episode
    count: int = 1
    seed: int = 0


@runtime_checkable
class Reflector(Protocol):
    """Writes reflections: a retrospective model, a sampler around one, an oracle."""

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """Return ``request.count`` reflections, ``index`` 0, 1, … in order."""
        ...


def derive_seed(*key: str | int) -> int:
    """A 63-bit seed for one draw, named by its key: (run seed, stage, step, task, trial, index …).

    No draw of this project comes from a shared stream, so resuming, reordering and distributing leave all draws the
    same.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


T = TypeVar("T")


def to_json(value: Any) -> Any:
    """A dataclass of this module as plain JSON values (dicts, lists, strings, numbers)."""
    if is_dataclass(value) and not isinstance(value, type):
        return {item.name: to_json(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_json(item) for item in value]
    return value


def from_json(cls: type[T], value: Any) -> T:
    """The inverse of :func:`to_json` for a dataclass of this module.

    Raises:
        pydantic.ValidationError: (a ``ValueError``) naming the field that is missing or mistyped.
    """
    adapter: TypeAdapter[T] = _adapter(cast(Hashable, cls))  # mypy takes type[T] for unhashable
    return adapter.validate_python(value)


@cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    return TypeAdapter(cls)
