"""Imports an agent's conversations with their outcomes: lines in OpenAI's format, or OpenTelemetry's GenAI traces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.jsonl import BufferImportError, OnError, refuse
from retro.buffer.log_rules import FactsForm, LogRule
from retro.buffer.messages import MessagesError, without_messages
from retro.buffer.otel_traces import conversations
from retro.buffer.recalled import WINDOW, Derivation
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.reading import UnreadableError, cut, parse_json, problems, read_lines
from retro.ties import sign
from retro.types import Episode, Reflection, StopReason, Task, Trajectory, Usage, from_json


@dataclass(frozen=True, slots=True)
class Retries:
    """How many retries had a higher, an equal and a lower return than the attempt that they followed."""

    better: int
    equal: int
    worse: int

    @classmethod
    def of(cls, signs: Sequence[int]) -> Retries:
        return cls(signs.count(1), signs.count(0), signs.count(-1))

    @property
    def count(self) -> int:
        return self.better + self.equal + self.worse

    def __str__(self) -> str:
        return f"{self.count:,} ({self.better:,} better, {self.equal:,} equal, {self.worse:,} worse)"


@dataclass(frozen=True, slots=True)
class LogReport:
    """What an import of conversations did, or would do."""

    added: int
    present: int
    """Episodes that were in the buffer already, equal."""
    skipped: tuple[str, ...]
    lines: tuple[str, ...]
    """A sentence about each line that became an episode, or was left out by the rule."""
    reflected: Retries
    """The retries with a reflection."""
    controls: Retries
    """The retries without one."""
    repeated: int
    """Retries whose opening has the text of their reflection."""

    @property
    def first_attempts(self) -> int:
        return self.added + self.present - self.reflected.count - self.controls.count


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
        BufferImportError: naming the bad lines, or a path at which no line has a value.
    """
    chains, derivation = _Chains(log.environment, rule or SplitRule()), Derivation(window, buffer.get)
    bad: list[str] = []
    lines: list[str] = []
    keys: set[str] = set()
    signs: dict[bool, list[int]] = {True: [], False: []}  # of the retries with and without a reflection
    read = added = present = repeated = 0
    try:
        with buffer.transaction() as add:
            for conversation in found:
                task, succeeded = None, False
                try:
                    line = _object(conversation)
                    said = log.said(line)
                    if said is None:
                        lines.append(f"{conversation.where}: left out by the rule")
                        continue
                    read += 1
                    keys |= {key for key, value in said.items() if value is not None}
                    task = task_id(log.named_task(said) or _trajectory(line).opening)
                    facts = log.facts(said)
                    succeeded = facts.succeeded
                    episode = derivation(chains.following(task, line, facts))
                    new = add(episode)
                except (UnreadableError, MessagesError, EpisodeRefusedError) as error:
                    bad.append(f"{conversation.where}: {error}")
                    chains.lose(conversation.where, task, succeeded)
                    continue
                if (failed := chains.failed(task)) is not None:
                    signs[episode.reflection is not None].append(sign(episode.return_ - failed.return_))
                chains.keep(episode)
                added, present, repeated = added + new, present + (not new), repeated + _repeats(episode)
                lines.append(f"{conversation.where}: {_sentence(episode, new)}")
            if read and (problem := log.unused_path(keys)) is not None:
                raise BufferImportError(problem)
            if bad and on_error == "refuse" and not dry_run:
                raise refuse("nothing was imported", bad)
            if dry_run:
                raise _Undone
    except _Undone:
        pass
    reflected, controls = Retries.of(signs[True]), Retries.of(signs[False])
    return LogReport(added, present, tuple(bad), tuple(lines), reflected, controls, repeated)


class _Chains:
    """The attempts at each task so far."""

    def __init__(self, environment: str, rule: SplitRule) -> None:
        self._environment, self._rule = environment, rule
        self._failed: dict[str, Episode] = {}
        """The last attempt at each task whose chain is open."""
        self._broken: dict[str, str] = {}
        """Why it is not known which attempt the next one at a task follows."""
        self._begun: dict[str, int] = {}
        self._unreadable: str | None = None
        """The last line whose task could not be read."""

    def failed(self, task: str) -> Episode | None:
        """The attempt that the next one at a task retries."""
        return self._failed.get(task)

    def following(self, task: str, line: dict[str, Any], facts: FactsForm) -> Episode:
        """The episode of a line: the next attempt at its task."""
        if task in self._broken:
            raise UnreadableError(self._broken[task])
        trajectory = _trajectory(line)
        failed = self.failed(task)
        if facts.reflection is not None and failed is None:
            raise UnreadableError(self._nothing_before(task))
        trial = failed.trial + 1 if failed else 0
        chain = self._begun.get(task, 0) - (failed is not None)
        return Episode(
            id=content_digest(["messages", self._environment, task, chain, trial, line]),
            task=Task(self._environment, task, facts.split or self._rule.split(self._environment, task), facts.kind),
            trial=trial,
            trajectory=trajectory,
            return_=facts.return_,
            success=facts.succeeded,
            stop=StopReason.SUCCESS if facts.succeeded else StopReason.FAILURE,
            parent=failed.id if failed else None,
            reflection=None if facts.reflection is None else Reflection(facts.reflection, "import"),
            usage=_usage(line.get("usage")),
        )

    def keep(self, episode: Episode) -> None:
        task = episode.task.id
        self._begun[task] = self._begun.get(task, 0) + (episode.trial == 0)
        if episode.failed:
            self._failed[task] = episode
        else:
            self._failed.pop(task, None)

    def lose(self, where: str, task: str | None, succeeded: bool) -> None:
        """Break the chain of a line that is not imported: a later attempt must not be taken for a retry of the attempt
        before it, nor for a first attempt. A success ends the chain, so the next attempt is a first one again.

        Args:
            where: The line's place.
            task: None if it could not be read: the line may belong to any chain that is open.
            succeeded: Whether the line is known to be a success.
        """
        if task is None:
            self._unreadable = where
            reason = f"{where}, which could not be read, may have been an attempt at this task"
            remedy = "correct that line, or delete it if it was not one"
            self._broken = dict.fromkeys(self._failed, f"{reason}: {remedy}") | self._broken
            self._failed.clear()
            return
        if task not in self._failed and task not in self._broken:
            self._begun[task] = self._begun.get(task, 0) + 1  # corrected, it begins a chain: later ids stay the same
        self._failed.pop(task, None)
        if succeeded:
            self._broken.pop(task, None)
        else:
            self._broken.setdefault(task, f"it follows {where}, an attempt at this task that cannot be imported")

    def _nothing_before(self, task: str) -> str:
        problem = f"it has a reflection, and no failed attempt at task {cut(task, 60)!r} is before it"
        if self._unreadable is None:
            return problem
        return f"{problem}; {self._unreadable}, which could not be read, may have been one"


def task_id(text: str) -> str:
    """The id of a task that is named by ``text``, such as its opening."""
    return text if len(text) <= 200 else content_digest([text])


def message_lines(paths: Sequence[Path]) -> Iterator[Conversation]:
    """The lines of JSONL files. Raises BufferImportError if a file is not there."""
    for path in _files(paths):
        for number, content in read_lines(path):
            yield Conversation(f"{path}, line {number}", partial(parse_json, content.rstrip()))


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


def _object(conversation: Conversation) -> dict[str, Any]:
    line = conversation.read()
    if not isinstance(line, dict):
        raise UnreadableError(f"must be an object, not {type(line).__name__}")
    return line


def _trajectory(line: Mapping[str, Any]) -> Trajectory:
    if "messages" not in line:
        raise UnreadableError("has no messages")
    return from_json(Trajectory, without_messages({"messages": line["messages"]}))


def _repeats(episode: Episode) -> bool:
    """Whether the opening has the text of the reflection, as the prompt of a real agent has."""
    text = "" if episode.reflection is None else episode.reflection.text.strip()
    return bool(text) and text in episode.trajectory.opening


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
    after += ", whose text is in the opening too" if _repeats(episode) else ""
    outcome = "success" if episode.success else "failure"
    there = "" if new else ", in the buffer already"
    return (
        f"task {cut(episode.task.id, 60)!r} ({episode.task.split}), {attempt}{after}, "
        f"{len(episode.trajectory.steps)} steps, return {episode.return_:g}, {outcome}{there}"
    )
