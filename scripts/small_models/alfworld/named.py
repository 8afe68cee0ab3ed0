"""How many of the places and things that the reflections of a run name stand in the attempts that they are about.

    python -m scripts.small_models.alfworld.named runs/alfworld-small

One row for each arm. A small model that cannot copy names says little that is true, whatever it was trained to say.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from retro.evaluation.records import Record, read_records
from retro.layout import RunFolder
from retro.types import Episode
from scripts.small_models.alfworld.tokenizer import HIGHEST, PLACES

_NAME = re.compile(rf"\b({'|'.join(HIGHEST)}) (\d+)\b")


def named(records: Iterable[Record]) -> dict[str, Counter[tuple[str, bool]]]:
    """For each arm, the names in its reflections: (``places`` or ``things``, whether the failed attempt shows it)."""
    episodes = {(record.arm, record.episode.task.id, record.episode.trial): record.episode for record in records}
    found: dict[str, Counter[tuple[str, bool]]] = defaultdict(Counter)
    for (arm, task, trial), episode in episodes.items():
        failed = episodes.get((arm, task, trial - 1))
        if episode.reflection is None or failed is None:
            continue
        shown = set(_NAME.findall(_read(failed)))
        for name in _NAME.findall(episode.reflection.text):
            found[arm]["places" if name[0] in PLACES else "things", name in shown] += 1
    return dict(found)


def _read(episode: Episode) -> str:
    """All that the reflection's writer was told about an attempt."""
    trajectory = episode.trajectory
    steps = (text for step in trajectory.steps for text in (step.action, step.observation))
    return "\n".join([trajectory.opening, *steps, *episode.recalled.entries])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    run = parser.parse_args().run
    for arm, names in named(read_records(RunFolder(run).evaluation / "episodes.jsonl")).items():
        shares = (f"{kind} {_share(names[kind, True], names[kind, False])}" for kind in ("places", "things"))
        print(f"{arm:20}", *shares, sep="  ")


def _share(shown: int, invented: int) -> str:
    total = shown + invented
    return f"{shown / total:.3f} of {total}" if total else "none"


if __name__ == "__main__":
    main()
