"""Imports the published trials of Reflexion (arXiv 2303.11366), which come in two layouts of parquet files.

``trials``: a row for each trial (``source, task_id, trial, trajectory, G, F1, status, carried_over …``).
``tuples``: a row for each failed trial, with the reflection written after it and the next trial's outcome (``…_next``).
Both layouts describe the same episodes: files of both may be given together, and become one tree.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.jsonl import BadLine, BufferImportError, ImportReport
from retro.buffer.recalled import WINDOW
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.buffer.store import ReplayBuffer
from retro.types import Episode, Recalled, Reflection, StopReason, Task, Trajectory
from retro.types import Step as TrajectoryStep

OUTCOME_COLUMNS = {"trajectory", "G", "F1", "answer", "status"}
SHARED_COLUMNS = {"env", "agent", "strategy", "source", "task_id", "question", "trial"} | OUTCOME_COLUMNS
TRIALS_COLUMNS = SHARED_COLUMNS | {"carried_over", "reflections_in_prompt"}
TUPLES_COLUMNS = SHARED_COLUMNS | {"context", "prior_reflections", "reflection"}
TUPLES_COLUMNS |= {f"{name}_next" for name in OUTCOME_COLUMNS}

STOPS = {
    "correct": StopReason.SUCCESS,
    "ok": StopReason.SUCCESS,
    "incorrect": StopReason.FAILURE,
    "fail": StopReason.FAILURE,
    "halted": StopReason.HORIZON,
}
PLAIN_RETRIES = {"none", "last_trial"}
"""Strategies of the logs that retry without any reflection."""

_TURN = re.compile(r"^(Thought|Action|Observation)(?: \d+)?:[ ]?", re.MULTILINE)

_Key = tuple[str, str, str]
"""(environment, source, task id): one chain of trials."""


@dataclass(frozen=True, slots=True)
class _Trial:
    """What the files say about one trial; a field that no file has is None."""

    number: int
    """From 0 (the logs count from 1)."""
    agent: str
    strategy: str
    question: str
    trajectory: str
    return_: float
    stop: StopReason
    answer: str
    context: str | None = None
    prompted: str | None = None
    """The reflections in this trial's prompt, as text."""
    reflection: str | None = None
    """The reflection that was written after it."""
    followed: bool = False
    """Whether a ``tuples`` row says what came between this trial and the next: ``reflection``, or nothing."""


def import_reflexion_logs(
    buffer: ReplayBuffer,
    paths: str | Path | Sequence[str | Path],
    rule: SplitRule | None = None,
    window: int = WINDOW,
) -> ImportReport:
    """Add the trials of the given parquet files (or of a folder's ``*.parquet``) in one transaction.

    The return is the answer's F1 where the log has it (HotPotQA), else the log's outcome; success is the outcome (exact
    match). Rows flagged ``carried_over`` repeat an earlier success and are not episodes. If no row has the reflection
    before a trial, the trial becomes a root that recalled the texts of its prompt: it is neither a rated retry nor a
    control. Without ``tuples``, a reflection is what a prompt has in addition to the prompt before it. An actor is
    assumed to have seen the last ``window`` of all reflections.

    Raises:
        BufferImportError: naming the file and the row (from 1) that is unreadable, or the conflict with the buffer.
    """
    chains: dict[_Key, dict[int, _Trial]] = defaultdict(dict)
    for path in _files([paths] if isinstance(paths, str | Path) else paths):
        for key, trial in _read(path):
            earlier = chains[key].get(trial.number)
            chains[key][trial.number] = trial if earlier is None else _merge(path, key, earlier, trial)
    with_tuples = {key[1] for key, chain in chains.items() if any(trial.followed for trial in chain.values())}
    added = present = 0
    with buffer.transaction() as add:
        for key in sorted(chains):
            for episode in _episodes(key, chains[key], key[1] in with_tuples, rule or SplitRule(), window):
                try:
                    new = add(episode)
                except EpisodeRefusedError as error:
                    raise BufferImportError(
                        f"reflexion logs, {key[1]}, task {key[2]}: {error}. Nothing was imported; give all files of "
                        "the logs in one command, or use an empty buffer"
                    ) from error
                added, present = added + new, present + (not new)
    return ImportReport(added, present)


def parse_trajectory(text: str, opening: str) -> Trajectory:
    """``Thought n: … Action n: … Observation n: …`` (the numbers may be missing) as steps."""
    parts = _TURN.split(text.strip())
    turns = list(zip(parts[1::2], (part.strip() for part in parts[2::2]), strict=True))
    steps: list[TrajectoryStep] = []
    thought = parts[0].strip()
    for kind, content in turns:
        if kind == "Thought":
            if thought:
                steps.append(TrajectoryStep(action="", observation="", thought=thought))
            thought = content
        elif kind == "Action":
            steps.append(TrajectoryStep(action=content, observation="", thought=thought))
            thought = ""
        elif steps:
            steps[-1] = replace(steps[-1], observation=content)
    if thought:
        steps.append(TrajectoryStep(action="", observation="", thought=thought))
    return Trajectory(opening, tuple(steps))


def _files(paths: Sequence[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path] if path.is_file() else []
        if not found:
            raise BufferImportError(f"{path}: no such file, or a folder without .parquet files")
        yield from found


def _read(path: Path) -> Iterator[tuple[_Key, _Trial]]:
    try:
        table = pyarrow.parquet.read_table(path)
        rows = table.to_pylist()
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise BufferImportError(f"{path}: not a readable parquet file: {' '.join(str(error).split())}") from error
    columns = set(table.column_names)
    if columns >= TUPLES_COLUMNS:
        parse = _from_tuple
    elif columns >= TRIALS_COLUMNS:
        parse = _from_trial
    else:
        missing = min((TUPLES_COLUMNS - columns, TRIALS_COLUMNS - columns), key=len)
        raise BufferImportError(f"{path}: not a Reflexion log, columns are missing: {', '.join(sorted(missing))}")
    for number, row in enumerate(rows, start=1):
        try:
            yield from parse(row)
        except (KeyError, TypeError, ValueError) as error:
            raise BufferImportError(f"{path}: {BadLine(number, str(error))}. Nothing was imported") from error


def _from_trial(row: Mapping[str, Any]) -> Iterator[tuple[_Key, _Trial]]:
    if not row["carried_over"]:
        yield _key(row), _trial(row, int(row["trial"]) - 1, prompted=_text(row, "reflections_in_prompt"))


def _from_tuple(row: Mapping[str, Any]) -> Iterator[tuple[_Key, _Trial]]:
    number = int(row["trial"]) - 1
    context, prompted = _text(row, "context"), _text(row, "prior_reflections")
    reflection = None if row["reflection"] is None else _text(row, "reflection")
    yield _key(row), _trial(row, number, context=context, prompted=prompted, reflection=reflection, followed=True)
    yield _key(row), _trial(row, number + 1, suffix="_next", context=context)


def _key(row: Mapping[str, Any]) -> _Key:
    return str(row["env"]), str(row["source"]), str(row["task_id"])


def _trial(row: Mapping[str, Any], number: int, suffix: str = "", **further: Any) -> _Trial:
    outcome, status = float(row[f"G{suffix}"]), str(row[f"status{suffix}"])
    if status not in STOPS:
        raise ValueError(f"status{suffix} {status!r}: known are {', '.join(STOPS)}")
    if (outcome == 1.0) != (STOPS[status] is StopReason.SUCCESS):
        raise ValueError(f"G{suffix} {outcome} contradicts status{suffix} {status!r}")
    f1 = row[f"F1{suffix}"]
    return _Trial(
        number=number,
        agent=str(row["agent"]),
        strategy=str(row["strategy"]),
        question=_text(row, "question"),
        trajectory=_text(row, f"trajectory{suffix}"),
        return_=outcome if f1 is None else float(f1),
        stop=STOPS[status],
        answer=_text(row, f"answer{suffix}"),
        **further,
    )


def _text(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{column} is {type(value).__name__}, not text")
    return value or ""


def _merge(path: Path, key: _Key, one: _Trial, other: _Trial) -> _Trial:
    """Two descriptions of one trial as one; they must agree where both have a value."""
    for name in ("trajectory", "return_", "stop", "answer"):
        if getattr(one, name) != getattr(other, name):
            raise BufferImportError(
                f"{path}: {key[1]}, task {key[2]}, trial {one.number + 1}: two rows disagree on {name.rstrip('_')}"
            )
    return replace(
        one,
        context=other.context if one.context is None else one.context,
        prompted=other.prompted if one.prompted is None else one.prompted,
        reflection=one.reflection if one.followed else other.reflection,
        followed=one.followed or other.followed,
    )


def _episodes(key: _Key, chain: Mapping[int, _Trial], tuples: bool, rule: SplitRule, window: int) -> Iterator[Episode]:
    """One chain as episodes, parents first; ``tuples``: whether this log has rows of that layout."""
    environment, source, task_id = key
    task = Task(environment, task_id, rule.split(environment, task_id))
    context = next((trial.context for trial in chain.values() if trial.context), "")
    path: list[str] = []
    for number in sorted(chain):
        trial = chain[number]
        parent, reflection = None, None
        before = chain.get(number - 1)
        if before is not None:
            known, reflection = _between(before, trial, tuples)
            parent = _id(key, number - 1) if known else None
        if parent is None:
            path = _entries(trial.prompted or "")
        elif reflection is not None:
            path = [*path, reflection]
        yield Episode(
            id=_id(key, number),
            task=task,
            trial=number,
            trajectory=parse_trajectory(trial.trajectory, _opening(context, trial.question)),
            return_=trial.return_,
            success=trial.stop is StopReason.SUCCESS,
            stop=trial.stop,
            parent=parent,
            reflection=None if reflection is None else Reflection(reflection, source),
            recalled=Recalled.latest(path, window),
            info={"log": source, "agent": trial.agent, "strategy": trial.strategy, "answer": trial.answer},
        )


def _between(before: _Trial, trial: _Trial, tuples: bool) -> tuple[bool, str | None]:
    """(known, reflection): what came between two consecutive trials; (True, None) is a plain retry."""
    if before.followed:
        return True, before.reflection
    if trial.strategy in PLAIN_RETRIES:
        return True, None
    if tuples or not trial.prompted:
        return False, None
    earlier = (before.prompted or "").strip()
    if not trial.prompted.startswith(earlier) or (not earlier and before.number > 0):
        return False, None
    added = trial.prompted.removeprefix(earlier).strip().removeprefix("- ")
    return (True, added) if added else (False, None)


def _entries(prompted: str) -> list[str]:
    """The reflections in a prompt, which lists them with bullets or holds a single text."""
    text = prompted.strip()
    if not text.startswith("- "):
        return [text] if text else []
    return [entry.strip() for entry in text.removeprefix("- ").split("\n- ")]


def _opening(context: str, question: str) -> str:
    return f"Context: {context}\n\nQuestion: {question}" if context else f"Question: {question}" if question else ""


def _id(key: _Key, number: int) -> str:
    return content_digest(["reflexion-logs", *key, number])
