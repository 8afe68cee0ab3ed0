"""Imports an agent's conversations with their outcomes: lines in OpenAI's format, or OpenTelemetry's GenAI traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.jsonl import BufferImportError, OnError, refuse
from retro.buffer.messages import MessagesError, without_messages
from retro.buffer.otel_traces import conversations
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, find_named, lacks_module
from retro.reading import UnreadableError, cut, parse_json, problems, read_lines
from retro.ties import exceeds
from retro.types import Episode, Reflection, Split, StopReason, Task, Trajectory, Usage, from_json

Facts = Mapping[str, Any]


class FactsForm(BaseModel):
    """What an episode needs beside its messages; a user's own rule returns these keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    task: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)] | None = None
    """Attempts at equal tasks belong together; None: the opening is the task."""
    return_: Annotated[float, Field(validation_alias="return", ge=0, le=1)]
    success: bool | None = None
    """None: a return of 1."""
    reflection: str | None = None
    """What the agent had read about the attempt before, if anything."""
    split: Split | None = None
    kind: str = ""


@dataclass(frozen=True, slots=True)
class LogRule:
    """Where a line says what an episode needs: paths of keys, such as ``metadata.score``, or a function. A key may have
    dots itself, as attributes of traces do.

    A line is a retry of the line before it that has the same task, if that one failed. After a success, and after a
    bad line, a new chain of attempts begins. The order of the lines, over all files, is that of the
    attempts.
    """

    environment: str
    """Names the environment of all episodes, and so the prompts."""
    task: str | None = None
    return_: str = "return"
    success: str | None = None
    reflection: str | None = None
    function: Callable[[dict[str, Any]], Facts | None] | None = None
    """Gets a line, and returns the keys of :class:`FactsForm` instead; None leaves the line out."""

    def facts(self, line: dict[str, Any]) -> FactsForm | None:
        """The facts of a line, or None to leave it out.

        Raises:
            UnreadableError: naming what is missing or wrong.
        """
        if self.function is not None:
            found = self.function(line)
            if found is None:
                return None
        else:
            paths = {"task": self.task, "return": self.return_, "success": self.success, "reflection": self.reflection}
            found = {key: _at(line, path) for key, path in paths.items() if path is not None}
        try:
            return FactsForm.model_validate(found)
        except ValidationError as error:
            raise UnreadableError(problems(error)) from None

    def named(self, line: Any) -> str | None:
        """The task of a line that may be bad, if a path tells it."""
        found = _at(line, self.task) if self.task is not None and isinstance(line, Mapping) else None
        return str(found) if isinstance(found, (str, int)) else None


@dataclass(frozen=True, slots=True)
class LogReport:
    """What an import of conversations did, or would do."""

    added: int
    present: int
    """Episodes that were in the buffer already, equal."""
    skipped: tuple[str, ...]
    lines: tuple[str, ...]
    """A sentence about each line that became an episode, or was left out by the rule."""


def load_rule(target: str) -> Callable[[dict[str, Any]], Facts | None]:
    """The function ``package.module:function``, also of the working folder.

    Raises:
        ConfigError: if there is none.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"--rule {target}: write package.module:function")
    try:
        function = find_named(target)
    except ModuleNotFoundError as error:
        if not lacks_module(error, target):
            raise  # the user's module imports something that is missing: its traceback shows what
        function = None
    if not callable(function):
        raise ConfigError(f"--rule {target}: not found in the working folder or among the installed packages")
    found: Callable[[dict[str, Any]], Facts | None] = function
    return found


class _Undone(Exception):
    pass


@dataclass(frozen=True, slots=True)
class Conversation:
    """One line of a log, or one conversation of a trace."""

    where: str
    """Its file and place, for messages."""
    read: Callable[[], Any]
    """Raises UnreadableError."""


def import_messages(
    buffer: ReplayBuffer,
    found: Iterable[Conversation],
    log: LogRule,
    on_error: OnError = "refuse",
    rule: SplitRule | None = None,
    window: int = WINDOW,
    dry_run: bool = False,
) -> LogReport:
    """Add conversations, in their order, in one transaction.

    Args:
        on_error: ``refuse`` everything if a line is bad, or ``skip`` such lines.
        rule: Chooses the split of a task whose line names none.
        window: How many of the latest reflections an actor is assumed to have seen.
        dry_run: Report what would be done, and leave the buffer as it is.

    Raises:
        BufferImportError: naming the bad lines.
    """
    chains, derivation = _Chains(log.environment, rule or SplitRule()), Derivation(window, buffer.get)
    bad: list[str] = []
    lines: list[str] = []
    added = present = 0
    try:
        with buffer.transaction() as add:
            for conversation in found:
                line: Any = None
                try:
                    line = conversation.read()
                    if not isinstance(line, dict):
                        raise UnreadableError(f"must be an object, not {type(line).__name__}")
                    facts = log.facts(line)
                    if facts is None:
                        lines.append(f"{conversation.where}: left out by the rule")
                        continue
                    episode = derivation(chains.following(line, facts))
                    new = add(episode)
                except (UnreadableError, MessagesError, EpisodeRefusedError) as error:
                    bad.append(f"{conversation.where}: {error}")
                    chains.end(log.named(line))
                    continue
                chains.keep(episode)
                added, present = added + new, present + (not new)
                lines.append(f"{conversation.where}: {_sentence(episode, new)}")
            if bad and on_error == "refuse" and not dry_run:
                raise refuse("nothing was imported", bad)
            if dry_run:
                raise _Undone
    except _Undone:
        pass
    return LogReport(added, present, tuple(bad), tuple(lines))


class _Chains:
    """The attempts at each task so far."""

    def __init__(self, environment: str, rule: SplitRule) -> None:
        self._environment, self._rule = environment, rule
        self._last: dict[str, Episode] = {}
        self._begun: dict[str, int] = {}

    def following(self, line: dict[str, Any], facts: FactsForm) -> Episode:
        """The episode of a line: the next attempt at its task."""
        if "messages" not in line:
            raise UnreadableError("has no messages")
        trajectory = from_json(Trajectory, without_messages({"messages": line["messages"]}))
        name = task_id(facts.task or trajectory.opening)
        last = self._last.get(name)
        failed = last if last is not None and last.failed else None
        if facts.reflection is not None and failed is None:
            raise UnreadableError(f"it has a reflection, and no failed attempt at task {cut(name, 60)!r} is before it")
        trial = failed.trial + 1 if failed else 0
        success = not exceeds(1, facts.return_) if facts.success is None else facts.success
        chain = self._begun.get(name, 0) - (failed is not None)
        return Episode(
            id=content_digest(["messages", self._environment, name, chain, trial, line]),
            task=Task(self._environment, name, facts.split or self._rule.split(self._environment, name), facts.kind),
            trial=trial,
            trajectory=trajectory,
            return_=facts.return_,
            success=success,
            stop=StopReason.SUCCESS if success else StopReason.FAILURE,
            parent=failed.id if failed else None,
            reflection=None if facts.reflection is None else Reflection(facts.reflection, "import"),
            usage=_usage(line.get("usage")),
        )

    def end(self, task: str | None) -> None:
        """End the chain of a bad line's task, or all chains if the task is not known: a reflection after that line must
        not be taken for one on the attempt before it."""
        for name in list(self._last) if task is None else [task_id(task)]:
            self._last.pop(name, None)

    def keep(self, episode: Episode) -> None:
        name = episode.task.id
        self._last[name] = episode
        self._begun[name] = self._begun.get(name, 0) + (episode.trial == 0)


def task_id(text: str) -> str:
    """The id of a task that is named by ``text``, such as its opening."""
    return text if len(text) <= 200 else content_digest([text])


def message_lines(paths: Sequence[Path]) -> Iterator[Conversation]:
    """The lines of JSONL files. Raises BufferImportError if a file is not there."""
    for path in _files(paths):
        for number, content in read_lines(path):
            yield Conversation(f"{path}, line {number}", partial(parse_json, content))


def trace_conversations(paths: Sequence[Path]) -> Iterator[Conversation]:
    """The conversations of traces, by their beginnings. Raises BufferImportError if a file does not hold traces."""
    try:
        found = conversations(_files(paths))
    except UnreadableError as error:
        raise BufferImportError(str(error)) from None
    for one in found:
        yield Conversation(f"{one.path}, conversation {cut(one.name, 60)}", one.line)


def _files(paths: Sequence[Path]) -> Sequence[Path]:
    for path in paths:
        if not path.is_file():
            raise BufferImportError(f"{path}: no such file")
    return paths


def _at(line: Mapping[str, Any], path: str) -> Any:
    """The value at a path of keys; None if there is none. The longest key that fits comes first."""
    if path in line:
        return line[path]
    keys = path.split(".")
    for count in range(len(keys) - 1, 0, -1):
        inner = line.get(".".join(keys[:count]))
        if isinstance(inner, Mapping):
            return _at(inner, ".".join(keys[count:]))
    return None


def _usage(value: Any) -> Usage:
    if not isinstance(value, Mapping):
        return Usage()
    counts = {key: value.get(key, 0) for key in ("prompt_tokens", "completion_tokens")}
    try:
        return from_json(Usage, counts)
    except ValidationError as error:
        raise UnreadableError(f"usage.{problems(error)}") from None


def _sentence(episode: Episode, new: bool) -> str:
    attempt = "first attempt" if episode.parent is None else f"retry {episode.trial}"
    after = " after a reflection" if episode.reflection else ""
    outcome = "success" if episode.success else "failure"
    there = "" if new else ", in the buffer already"
    return (
        f"task {cut(episode.task.id, 60)!r} ({episode.task.split}), {attempt}{after}, "
        f"{len(episode.trajectory.steps)} steps, return {episode.return_:g}, {outcome}{there}"
    )
