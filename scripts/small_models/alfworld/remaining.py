"""How far the failed chains of each arm of a run came: for each kind of task, the furthest of all attempts at it.

    python -m scripts.small_models.alfworld.remaining runs/alfworld-small --arms ppo-env

A chain counts once, under the last of these that one of its attempts reached: nothing that is wanted was seen, it was
seen, held, treated (where the task asks for that).
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path

from retro.evaluation.records import Record, read_records
from retro.layout import RunFolder
from retro.types import Episode
from scripts.small_models.alfworld.view import View, kind_of


class Came(StrEnum):
    """In the order in which a task is solved."""

    NOWHERE = "not seen"
    SEEN = "seen"
    HELD = "held"
    TREATED = "treated"


_ORDER = list(Came)


def remaining(records: Iterable[Record]) -> dict[str, dict[str, Counter[Came]]]:
    """Arm → kind of task → how many failed chains came how far."""
    chains: dict[tuple[str, str], list[Episode]] = defaultdict(list)
    for record in records:
        chains[record.arm, record.episode.task.id].append(record.episode)
    found: dict[str, dict[str, Counter[Came]]] = defaultdict(lambda: defaultdict(Counter))
    for (arm, _), episodes in chains.items():
        if not any(episode.success for episode in episodes):
            furthest = max((came(episode) for episode in episodes), key=_ORDER.index)
            found[arm][episodes[0].task.kind][furthest] += 1
    return found


def came(episode: Episode) -> Came:
    """How far one failed attempt came."""
    view = View.of(episode.trajectory.opening)
    for step in episode.trajectory.steps:
        view.see(step.action, step.observation)
    wanted = view.goal.thing
    if any(kind_of(thing) == wanted and verb == view.goal.verb for verb, thing in view.treated):
        return Came.TREATED
    if kind_of(view.holding or "") == wanted or any(kind_of(thing) == wanted for thing in view.put):
        return Came.HELD
    return Came.SEEN if any(kind_of(thing) == wanted for thing in view.where) else Came.NOWHERE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--arms", nargs="*", help="by default all")
    arguments = parser.parse_args()
    found = remaining(read_records(RunFolder(arguments.run).evaluation / "episodes.jsonl"))
    for arm in arguments.arms or found:
        for kind, counts in found[arm].items():
            print(f"{arm:16}{kind:32}", *(f"{name} {counts[name]}" for name in Came), sep="  ")


if __name__ == "__main__":
    main()
