"""Trajectories as users have them: plain JSON, ours or written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from retro.buffer.forms import DocumentForm
from retro.buffer.messages import MessagesError, without_messages
from retro.reading import UnreadableError, parse_json, problems
from retro.types import Episode, Split, Trajectory, to_json


class TrajectoryError(ValueError):
    """A document that is not a trajectory: the message names the key."""


Document = Episode | Trajectory | Mapping[str, Any] | Sequence[Any]
"""What :func:`read_trajectory` reads."""


def read_trajectory(value: Document) -> tuple[Episode, tuple[str, ...] | None]:
    """An episode, and the earlier reflections on its task if the document lists them, else None.

    Args:
        value: An :class:`Episode`, a :class:`Trajectory`, a line of a buffer's export, an episode as ``to_json`` writes
            it, or a mapping

            {"opening": "You are in … Your task is to …",
             "steps": [{"action": "go to desk 1", "observation": "On the desk 1 you see a pen 1.",
                        "thought": "", "reward": 0.0}, …],
             "return": 0.3, "success": false, "memory": ["an earlier reflection", …], "environment": "alfworld"}

            where ``thought``, ``reward``, ``return`` (default: the sum of the rewards), ``success`` (false),
            ``memory`` (empty) and ``environment`` (whose prompts are used; the export's own) may be left out. The key
            ``messages`` may replace ``opening`` and ``steps``, and the list of messages alone may stand for the mapping
            (:mod:`retro.buffer.messages`).

    Raises:
        TrajectoryError: naming the key that is missing, unknown or mistyped; or if it holds a value that JSON cannot
            express, or a number that is not finite.
    """
    if isinstance(value, Episode):
        return _finite(value), None
    if isinstance(value, Trajectory):
        value = {"trajectory": to_json(value)}
    if not isinstance(value, (Mapping, list, tuple)):
        raise TrajectoryError(
            f"a trajectory is a JSON object with opening and steps, or a list of messages, not {type(value).__name__}"
        )
    try:
        value = without_messages(value)
    except MessagesError as error:
        raise TrajectoryError(str(error)) from None
    if value.keys().isdisjoint({"opening", "steps", "trajectory"}):
        raise TrajectoryError("not a trajectory: opening and steps, or messages, are missing")
    try:  # as if it were read from a file
        document = DocumentForm.model_validate(parse_json(json.dumps(value, default=_number)))
    except ValidationError as error:
        raise TrajectoryError(f"not a trajectory: {problems(error)}") from None
    except (UnreadableError, TypeError, RecursionError) as error:
        raise TrajectoryError(f"not a trajectory: {error}") from None
    if "trajectory" not in value and not document.trajectory.steps:
        raise TrajectoryError("not a trajectory: steps: there must be at least one")
    memory = None if document.memory is None else tuple(document.memory)
    return _finite(document.episode("", Split.TEST)), memory


def _number(value: Any) -> Any:
    """The number in a NumPy or PyTorch scalar."""
    if not hasattr(value, "item"):
        raise TypeError(f"{type(value).__name__} is not JSON")
    return value.item()


def _finite(episode: Episode) -> Episode:
    rewards = [step.reward for step in episode.trajectory.steps]
    if not all(map(math.isfinite, [*rewards, episode.return_])):
        raise TrajectoryError("not a trajectory: its rewards and its return must be finite")
    return episode
