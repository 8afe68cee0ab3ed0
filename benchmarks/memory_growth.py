"""Does a bank stay small? Its memory, its prompts and its look-ups, from a thousand to a hundred thousand episodes.

    python benchmarks/memory_growth.py --json FILE [--episodes 1000 10000 100000] [--kinds KIND …]

Each kind of memory that learns across tasks folds made-up household episodes, by the function that the stage ``memory``
calls, and is asked by tasks that it has not seen. The figures of the largest size are compared with those of the
smallest: the command exits with 1 if one of them grew by more than a half. Tasks and reflections never repeat, and
there are more procedures than a bank may hold, so every bank has its full number of entries at the smallest size.
``tracemalloc`` counts the memory, so that it is not about other work on the machine; times are CPU seconds.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter, process_time

from rich.console import Console
from rich.table import Table

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check
from retro.artifacts import write_json
from retro.cli.errors import one_line_errors
from retro.config import MemorySection, RunConfig
from retro.config.points import POINTS
from retro.memory import Query
from retro.memory.bank import fold_bank, learns, make_memory
from retro.memory.entries import tokens
from retro.types import Episode, Reflection, Split, Step, StopReason, Task, Trajectory, Usage

SIZES = (1_000, 10_000, 100_000)
ATTEMPTS = 4
"""Episodes of a task."""
QUERIES = 100
MOST = 1.5
"""How many times as large as with the fewest episodes a figure may be."""
KINDS = ("pick", "heat", "clean", "cool", "look", "pick two")
PLACES = ("cabinet", "desk", "drawer", "fridge")
THINGS = ("apple", "book", "mug")
"""So few that procedures, in which numbers do not count, recur: the others would be used once, and forgotten."""


@dataclass(frozen=True)
class Figures:
    """What a bank is after so many episodes."""

    kind: str
    episodes: int
    entries: int | None
    content_bytes: int
    """Of its files."""
    held_bytes: int
    """What a process holds that plays with it: the entries and the index of their openings."""
    prompt_tokens: int
    """The most that one of the queries added to a prompt, in tokens of four bytes."""
    recall_ms: float
    """The median of the queries, without the first one, which makes the index."""
    index_ms: float
    fold_ms: float
    """A mean over all episodes."""


def made_up(task: int) -> tuple[Task, str, Random]:
    """A task of the household, its opening, and what its episodes are drawn from."""
    draws = Random(f"memory growth {task}")
    kind = draws.choice(KINDS)
    places = " ".join(f"{place} {draws.randint(1, 9)}" for place in draws.choices(PLACES, k=7))
    opening = f"places: {places}\ntask: {kind} {draws.choice(THINGS)} {task}, put it in {draws.choice(PLACES)} 1"
    return Task("household", f"task-{task:07d}", Split.TRAIN, kind), opening, draws


def episodes(count: int) -> Iterator[Episode]:
    """Made-up episodes in the order of the buffer: a failed first attempt of each task, then retries."""
    for number in range(count):
        of, trial = divmod(number, ATTEMPTS)
        task, opening, draws = made_up(of)
        draws = Random(f"{draws.random()} {trial}")
        success = trial > 0 and draws.random() < 0.5
        steps: list[Step] = []
        for does in ("take", "use", "put down")[: 3 if success else draws.randint(1, 3)]:
            place, thing = (f"{draws.choice(names)} {draws.randint(1, 9)}" for names in (PLACES, THINGS))
            seen = f"you see {' '.join(draws.sample(PLACES, 3))} {number}"
            reward = 0.3 * (success or draws.random() < 0.5)
            steps += [Step(f"go to {place}", seen), Step(f"{does} {thing} at {place}", seen, reward)]
        lesson = f"nothing in {draws.choice(PLACES)} {number}. try {draws.choice(PLACES)} {number} for it."
        yield Episode(
            id=f"{number:08d}",
            task=task,
            trial=trial,
            trajectory=Trajectory(opening, tuple(steps)),
            return_=1.0 if success else draws.choice((0.0, 0.5)),
            success=success,
            stop=StopReason.SUCCESS if success else StopReason.HORIZON,
            reflection=Reflection(lesson, "made up") if trial else None,
            usage=Usage(500, 50),
        )


def measure(section: MemorySection, count: int) -> Figures:
    """Fold ``count`` episodes, then load the bank and ask it."""
    with TemporaryDirectory() as folder:
        began = process_time()
        facts = fold_bank(section, episodes(count), Path(folder))
        folded = process_time() - began
        asked = [Query(task, opening) for task, opening, _ in map(made_up, range(10**7, 10**7 + QUERIES))]
        make_memory(section, Path(folder)).recall(asked[0])  # imports what the index needs
        tracemalloc.start()
        memory = make_memory(section, Path(folder))
        memory.recall(asked[0])
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        memory = make_memory(section, Path(folder))
    seconds, added = [], []
    for query in asked:
        began = process_time()
        recalled = memory.recall(query)
        seconds.append(process_time() - began)
        added.append(tokens("\n".join(recalled.entries)))
    return Figures(
        kind=section.chosen,
        episodes=count,
        entries=facts.entries,
        content_bytes=facts.bytes,
        held_bytes=held,
        prompt_tokens=max(added),
        recall_ms=1000 * median(seconds[1:]),
        index_ms=1000 * seconds[0],
        fold_ms=1000 * folded / count,
    )


def checks(found: Sequence[Figures]) -> list[Check]:
    """Every figure of the largest size, as a multiple of the smallest size's."""
    made = []
    for kind in dict.fromkeys(figures.kind for figures in found):
        own = [figures for figures in found if figures.kind == kind]
        first, last = own[0], own[-1]
        growth = f"{kind}, {last.episodes / first.episodes:,.0f} times as many episodes"
        for name in ("content_bytes", "held_bytes", "prompt_tokens", "recall_ms", "fold_ms"):
            made.append(Check(f"{growth}: {name}", getattr(last, name) / getattr(first, name), MOST))
    return made


def table(found: Sequence[Figures]) -> Table:
    drawn = Table(title="banks by the number of episodes that they were folded from (times are CPU time)")
    for name in ("kind", "episodes", "entries", "files, KiB", "held, KiB", "prompt, tokens", "recall, ms", "fold, ms"):
        drawn.add_column(name, justify="left" if name == "kind" else "right")
    for own in found:
        drawn.add_row(
            own.kind,
            f"{own.episodes:,}",
            f"{own.entries}",
            f"{own.content_bytes / 1024:,.0f}",
            f"{own.held_bytes / 1024:,.0f}",
            f"{own.prompt_tokens:,}",
            f"{own.recall_ms:.2f}",
            f"{own.fold_ms:.2f}",
        )
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    sections = [RunConfig.model_validate({"memory": {"kind": kind}}).memory for kind in POINTS["memory"].kinds]
    learning = {section.chosen: section for section in sections if learns(section)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--episodes", type=int, nargs="+", default=SIZES, help="the sizes, the smallest first")
    parser.add_argument("--kinds", nargs="+", choices=learning, default=list(learning), help="by default all")
    given = parser.parse_args(arguments)
    started = perf_counter()
    found = []
    for kind in given.kinds:
        for count in sorted(given.episodes):
            found.append(measure(learning[kind], count))
            print(f"{kind}, {count:,} episodes: {perf_counter() - started:.0f} s", file=sys.stderr)
    made = checks(found)
    written = sys.argv[1:] if arguments is None else list(arguments)
    console = Console(width=max(120, Console().width))
    console.print(table(found))
    for check in made:
        verdict = "ok  " if check.holds else "FAIL"
        console.print(f"{verdict} {check.figure:.2f} (at most {check.limit})  {check.name}", highlight=False)
    result = {
        "command": shlex.join(["python", "benchmarks/memory_growth.py", *written]),
        "figures": [asdict(own) for own in found],
        "checks": [check.to_json() for check in made],
        "machine": machine(),
        "seconds": round(perf_counter() - started, 1),
    }
    write_json(given.json, result)
    console.print(f"{given.json} · {result['seconds']} s", highlight=False, soft_wrap=True)
    return 0 if all(check.holds for check in made) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
