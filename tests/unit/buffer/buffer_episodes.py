"""Episodes made by hand, for trees small enough to check by eye."""

from __future__ import annotations

from retro.types import Episode, Recalled, Reflection, Split, Step, StopReason, Task, Trajectory, Usage

TASK = Task("household", "task-1", Split.TRAIN, "heat")


def make_episode(
    id: str,
    return_: float = 0.3,
    *,
    parent: Episode | None = None,
    text: str | None = None,
    index: int = 0,
    source: str = "base",
    task: Task = TASK,
    stop: StopReason | None = None,
) -> Episode:
    success = return_ == 1.0
    return Episode(
        id=id,
        task=parent.task if parent else task,
        trial=parent.trial + 1 if parent else 0,
        trajectory=Trajectory(
            "You are in a kitchen.", (Step("go to fridge 1", "It is closed.", return_, "Look there."),)
        ),
        return_=return_,
        success=success,
        stop=stop or (StopReason.SUCCESS if success else StopReason.HORIZON),
        parent=parent.id if parent else None,
        reflection=Reflection(text, source, index, usage=Usage(100, 9), score=0.5) if text is not None else None,
        recalled=Recalled((text,), ("reflection-0",)) if text is not None else Recalled(),
        seed=2**63 - 1,
        usage=Usage(50, 7),
        info={"note": "ä"},
    )
