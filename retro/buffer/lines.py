"""An episode as one line of JSON. The buffer stores only what a line can express, so exports are read back equal."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from pydantic import ValidationError

from retro.buffer.engine import EpisodeRefusedError
from retro.buffer.forms import LineForm
from retro.buffer.schema import content_digest
from retro.buffer.splits import SplitRule
from retro.reading import UnreadableError, cut, parse_json, problems
from retro.types import Episode, to_json

_NOT_NAMING: dict[str, Any] = {"trajectory": {"steps": {"__all__": {"usage"}}}, "recalled": True}
"""Keys that do not count in the id of an episode without one: each step's cost, and what its actor was shown."""


class Line(NamedTuple):
    """A line as it was read."""

    episode: Episode
    says_recalled: bool
    """Whether the line says what the actor was shown; if not, ``episode.recalled`` is empty and has to be derived."""


def read_line(line: bytes, rule: SplitRule) -> Line:
    """The episode of a line; ``rule`` chooses the split of a task whose line names none.

    Raises:
        UnreadableError: saying what is wrong with the line.
    """
    tree = parse_json(line)
    if not isinstance(tree, dict):
        raise UnreadableError(f"must be an object, not {type(tree).__name__}")
    try:
        form = LineForm.model_validate(tree)
    except ValidationError as error:
        raise UnreadableError(problems(error)) from None
    id = form.id or content_digest(["jsonl", form.model_dump(mode="json", exclude=_NOT_NAMING)])
    return Line(form.episode(id, rule.split(form.environment, form.task)), form.recalled is not None)


def write_line(episode: Episode) -> bytes:
    """The line of an episode, with its newline.

    Raises:
        EpisodeRefusedError: naming the episode and the field that JSON or UTF-8 cannot express.
    """
    try:
        return json.dumps(to_line(episode), ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise _refusal(episode, error) from None


def read_back(episode: Episode) -> Episode:
    """An equal episode in plain types, as it would be read from its line.

    Raises:
        EpisodeRefusedError: naming the episode and the field that a line cannot express: text with half of a surrogate
            pair, a number that is not finite, an ``info`` that is not JSON or nested too deeply …
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
    """The path of the innermost value that JSON cannot express, and the reason; None if there is none."""
    try:
        parse_json(json.dumps(value))
    except (TypeError, UnreadableError) as error:
        fault = f"{cut(path)}: {error}"
    else:
        return None
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    faults = (_fault(item, f"{path}.{key}" if path else str(key)) for key, item in inner)
    return next((found for found in faults if found is not None), fault)
