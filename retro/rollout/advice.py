"""Advice on demand: in the middle of an episode, the actor asks for a reflection on what it has played so far.

The player stops where the actor asks, and returns what it has played. The loop has the reflection written, puts it in
place of the environment's answer, and has the attempt played on. So the reflector is needed only where the loop runs,
and every runner can play such attempts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from retro.reading import encodable
from retro.types import Advice, Episode, Reflection, Step, to_json

ASK = "ask for advice"
"""The action. The environment gets it, too, as it gets any action that it does not know: so it costs a step."""


def offered(opening: str, most: int) -> str:
    """The opening as the actor reads it: with a line that offers the action, if it may ask at all.

    The line is not part of the trajectory, so the reflector and banks read the task as the environment states it.
    """
    if not most:
        return opening
    times = "once" if most == 1 else f"up to {most} times"
    return f"{opening}\nYou may also {ASK}, {times}: the action `{ASK}` costs a step and brings advice on what you did."


def asks(step: Step) -> bool:
    """Whether the actor asked for advice in this step."""
    return step.action.strip().casefold() == ASK


def waits(steps: Sequence[Step], most: int) -> bool:
    """Whether the last of an attempt's own steps asks for advice, and not more than ``most`` of them do."""
    return asks(steps[-1]) and sum(map(asks, steps)) <= most


def advised(paused: Episode, given: Reflection) -> Episode:
    """``paused`` with the reflection as the observation of its last step, and recorded as ``Episode.advice``."""
    trajectory, index = paused.trajectory, len(paused.trajectory.steps) - 1
    answered = replace(trajectory.steps[index], observation=encodable(f"advice: {given.text}"))
    recorded = to_json((*paused.advice, Advice(index, given)))
    return replace(
        paused,
        trajectory=replace(trajectory, steps=(*trajectory.steps[:index], answered)),
        info={**paused.info, "advice": recorded},
    )
