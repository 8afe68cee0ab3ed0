"""The words of the whole pipeline: tasks, steps, trajectories, episodes, reflections, and who acts and who reflects.

Everything here is frozen and typed, imports nothing of ours, and turns into plain JSON by ``to_json``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from enum import StrEnum
from functools import cache, cached_property
from typing import Annotated, Any, Literal, Protocol, TypedDict, TypeVar, cast, runtime_checkable

from pydantic import Field, TypeAdapter

Count = Annotated[int, Field(ge=0)]


class Split(StrEnum):
    """Which use a task is for. Everything that learns or selects is split by task, never by row."""

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
    """The actor's next prompt did not fit its context, even shortened: played as far as it goes, a failed play."""
    ACTOR_ERROR = "actor_error"
    """The actor could not be asked any more (its server failed for good): reported, but not counted as played."""
    ENVIRONMENT_ERROR = "environment_error"
    """The environment broke (a worker process died): reported, but not counted as played."""


class Message(TypedDict):
    """One turn of a chat prompt."""

    role: Literal["system", "user", "assistant"]
    content: str


Prompt = str | Sequence[Message]
"""What a language model is asked: plain text for completion models, messages for chat models."""


@dataclass(frozen=True, slots=True)
class Task:
    """One problem instance of an environment. ``(environment, id)`` alone rebuilds it."""

    environment: str
    id: str
    split: Split
    kind: str = ""
    """The type of the task within its environment (``heat``, ``bridge question``): results are also told by kind."""


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
    """Calls of one session extend one another's prompt: what a prompt cache may be keyed by. May be empty."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What a language model answered."""

    text: str
    finish_reason: Literal["stop", "length"]
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Step:
    """One turn of an episode: what the actor thought and did, and what the environment answered."""

    action: str
    observation: str
    reward: float = 0.0
    thought: str = ""
    usage: Usage = Usage()
    """The tokens of the actor's call behind it."""


@dataclass(frozen=True, slots=True)
class Trajectory:
    """The ordered steps of one play: ``opening`` is the observation of the reset, which states the task."""

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
class Recalled:
    """What the actor's memory gave it for one episode: the entries as they were rendered into its prompt, in order.

    Raises:
        ValueError: if there are not as many ids as entries.
    """

    entries: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    """A name for each entry, such as an episode's id (``reflection-2``: the third one on the way to this episode)."""

    def __post_init__(self) -> None:
        if len(self.entries) != len(self.ids):
            raise ValueError(f"{len(self.entries)} entries with {len(self.ids)} ids: each entry has its id")

    @classmethod
    def latest(cls, reflections: Sequence[str], count: int) -> Recalled:
        """The last ``count`` of ``reflections``, which are all on the way to an episode, oldest first."""
        first = max(0, len(reflections) - count)
        return cls(tuple(reflections[first:]), tuple(f"reflection-{n}" for n in range(first, len(reflections))))


@dataclass(frozen=True, slots=True)
class Episode:
    """One play of a task. Episodes form a tree: ``parent`` is the failed episode that this one retries.

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
    """What its actor was shown of earlier trials or of other tasks."""
    seed: int = 0
    usage: Usage = Usage()
    """The actor's tokens; the reflection's are its own."""
    info: Mapping[str, Any] = field(default_factory=dict)
    """Anything else worth keeping, plain JSON: where a log came from, an error's text."""

    @property
    def broken(self) -> bool:
        """An error ended it, the actor's or the environment's: it is reported, and played again when resumed."""
        return self.stop in (StopReason.ACTOR_ERROR, StopReason.ENVIRONMENT_ERROR)

    @property
    def broken_by(self) -> str:
        """Whose error ended a broken one, in a word for messages."""
        return "environment" if self.stop is StopReason.ENVIRONMENT_ERROR else "actor"

    @property
    def failed(self) -> bool:
        """Worth a reflection: it was played to its end and did not succeed."""
        return not self.success and not self.broken


class ActorError(RuntimeError):
    """The actor cannot answer this call, and asking again would not help: it ends the episode, not the run.

    Its text is kept with the episode: it names what failed, and holds no secrets.
    """


@dataclass(frozen=True)
class TokenLimit:
    """What a prompt may cost: ``count(text)`` tokens of the model that reads it, at most ``max_tokens``."""

    count: Callable[[str], int]
    max_tokens: int
    key: str = "the limit"
    """What raises it: a config key."""

    def fits(self, text: str) -> bool:
        """Whether ``text`` is within the limit. Of a short one the bytes are proof enough: a token is at least one."""
        return len(text.encode()) + self._around <= self.max_tokens or self.count(text) <= self.max_tokens

    @cached_property
    def _around(self) -> int:
        """Tokens of a chat template around an empty text."""
        return self.count("")


@runtime_checkable
class Actor(Protocol):
    """The frozen language model that acts.

    One that also has ``prompt_limit: TokenLimit | None`` is never sent a longer prompt: older observations are left
    out of it.
    """

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Answer ``prompt``. Many calls may be under way at once.

        Raises:
            ActorError: if this one call failed for good.
        """
        ...


@dataclass(frozen=True, slots=True)
class ReflectionRequest:
    """What a reflector is asked: ``count`` reflections on ``episode``, each drawn from a seed derived from ``seed``."""

    episode: Episode
    count: int = 1
    seed: int = 0


@runtime_checkable
class Reflector(Protocol):
    """Whoever writes reflections: a retrospective model, a sampler around one, an oracle."""

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """Return ``request.count`` reflections, ``index`` 0, 1, … in order."""
        ...


def derive_seed(*key: str | int) -> int:
    """A 63-bit seed for one draw, named by its key: (run seed, stage, step, task, trial, index …).

    No draw of this project comes from a shared stream, so what is resumed, reordered or run on two processes draws the
    same.
    """
    digest = hashlib.blake2b("\x1f".join(map(str, key)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


T = TypeVar("T")


def to_json(value: Any) -> Any:
    """Dataclasses of this module as plain JSON values (dicts, lists, strings, numbers)."""
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
