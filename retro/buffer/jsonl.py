"""Episodes as JSON lines: the user's own trials in, the buffer out. The schema is described in ``docs/buffer.md``."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from retro.buffer.engine import ReplayBufferError
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory, Usage, to_json

SHOWN_PROBLEMS = 20

OnError = Literal["refuse", "skip"]


class BufferImportError(ValueError):
    """A file that was not imported: the message names each bad line by its number. Nothing of it is in the buffer."""


@dataclass(frozen=True, slots=True)
class BadLine:
    number: int
    """From 1."""
    problem: str

    def __str__(self) -> str:
        return f"line {self.number}: {self.problem}"


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did."""

    added: int
    present: int = 0
    """Episodes that were in the buffer already, equal."""
    skipped: tuple[BadLine, ...] = field(default=())


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
    text: Annotated[str, Field(min_length=1)]
    source: str = "import"
    index: Annotated[int, Field(ge=0)] = 0
    finish_reason: Literal["stop", "length"] = "stop"
    usage: _Usage = _Usage()
    score: float | None = None


def _text_is_a_reflection(value: Any) -> Any:
    return {"text": value} if isinstance(value, str) else value


_NOT_NAMING = {"trajectory": {"steps": {"__all__": {"usage"}}}}
"""What an episode cost at each step says nothing of which one it is."""


class _Episode(_Line):
    """One line. Only what has no default is required."""

    environment: Annotated[str, Field(min_length=1)]
    task: Annotated[str, Field(min_length=1)]
    trajectory: _Trajectory
    return_: Annotated[float, Field(alias="return", ge=0, le=1)]
    success: bool
    id: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    trial: Annotated[int, Field(ge=0)] = 0
    parent: str | None = None
    reflection: Annotated[_Reflection | None, BeforeValidator(_text_is_a_reflection)] = None
    split: Split | None = None
    kind: str = ""
    stop: StopReason | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    usage: _Usage = _Usage()
    info: dict[str, Any] = {}

    def episode(self, rule: SplitRule) -> Episode:
        reflection = self.reflection
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
            seed=self.seed,
            usage=Usage(**dict(self.usage)),
            info=self.info,
        )


def import_jsonl(
    buffer: ReplayBuffer, path: str | Path, on_error: OnError = "refuse", rule: SplitRule | None = None
) -> ImportReport:
    """Add the episodes of a JSONL file in one transaction: all of them, or (on any error) none.

    A parent may stand after its child. A line is bad if it is not JSON, does not follow the schema, or can't be added
    (its id is taken, its parent is missing or bad itself …).

    Args:
        on_error: ``refuse`` the file if a line is bad, or ``skip`` such lines.
        rule: the split of tasks whose lines name none.

    Raises:
        BufferImportError: naming the file and its bad lines.
    """
    path = Path(path)
    bad: list[BadLine] = []
    good: list[tuple[int, Episode]] = []
    for number, text in _lines(path):
        try:
            good.append((number, _parse(text, rule or SplitRule())))
        except ValueError as error:
            bad.append(BadLine(number, str(error)))
    # A parent's trial is smaller than its child's, so this order puts every parent first.
    good.sort(key=lambda numbered: (numbered[1].trial, numbered[0]))
    added = present = 0
    with buffer.transaction() as add:
        for number, episode in good:
            try:
                if add(episode):
                    added += 1
                else:
                    present += 1
            except ReplayBufferError as error:
                bad.append(BadLine(number, str(error)))
        bad.sort(key=lambda line: line.number)
        if bad and on_error == "refuse":
            raise BufferImportError(_refusal(path, bad))
    return ImportReport(added, present, tuple(bad))


def export_jsonl(
    buffer: ReplayBuffer, path: str | Path, environment: str | None = None, split: Split | str | None = None
) -> int:
    """Write the buffer's episodes to ``path``, parents first; return how many. :func:`import_jsonl` reads it back."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    count = 0
    with partial.open("w", encoding="utf-8") as file:
        for episode in buffer.episodes(environment, split):
            file.write(json.dumps(to_line(episode), ensure_ascii=False) + "\n")
            count += 1
    os.replace(partial, path)
    return count


def to_line(episode: Episode) -> dict[str, Any]:
    """``episode`` as one line's object."""
    tree = to_json(episode)
    task = tree.pop("task")
    first = {"id": tree.pop("id"), "environment": task["environment"], "task": task["id"]}
    tree["return"] = tree.pop("return_")
    return {**first, "split": task["split"], "kind": task["kind"], **tree}


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    if not path.is_file():
        raise BufferImportError(f"{path}: no such file")
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield number, line


def _parse(line: bytes, rule: SplitRule) -> Episode:
    try:
        tree = json.loads(line, parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"must be an object, not {type(tree).__name__}")
    try:
        return _Episode.model_validate(tree).episode(rule)
    except ValidationError as error:
        raise ValueError("; ".join(_problem(item["loc"], item["msg"]) for item in error.errors())) from None


def _no_constant(name: str) -> float:
    raise ValueError(f"not JSON: {name} is not a number")


def _problem(location: Sequence[int | str], message: str) -> str:
    return f"{'.'.join(map(str, location))}: {message}"


def _refusal(path: Path, bad: Sequence[BadLine]) -> str:
    shown = [f"  {line}" for line in bad[:SHOWN_PROBLEMS]]
    rest = [f"  … and {len(bad) - SHOWN_PROBLEMS} more"] if len(bad) > SHOWN_PROBLEMS else []
    remedy = "Correct them, or import with --on-error skip to leave them out."
    return "\n".join([f"{path}: nothing was imported, {len(bad)} bad lines:", *shown, *rest, remedy])
