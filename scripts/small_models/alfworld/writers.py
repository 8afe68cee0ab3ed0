"""How far an actor gets in the validation rooms with notes of writers that copy without a mistake.

    python -m scripts.small_models.alfworld.writers data/alfworld-small/actor --phrasing a --games GAMES --tasks 60

``mixture`` writes what the retrospective base is trained on, ``all`` says all that the failures have shown, and
``sampled`` writes nothing, while the actor's retries are sampled. Between the first and the second lies what training
the base can gain. Each row has the success after each attempt.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from retro.types import Episode, derive_seed
from scripts.small_models.alfworld import reflections
from scripts.small_models.alfworld.language import PHRASINGS, Advice, Phrasing, Says
from scripts.small_models.alfworld.probes import Probe, parser

ATTEMPTS = 4
Writer = Callable[[reflections.Findings, random.Random], list[Advice]]


def everything(found: reflections.Findings, rng: random.Random) -> list[Advice]:
    return reflections.useful(found, rng, each=1.0) or [Advice(Says.VAGUE)]


WRITERS: dict[str, Writer] = {"mixture": reflections.write, "all": everything}


def with_notes(probes: Probe, name: str, phrasing: Phrasing) -> list[float]:
    """Cumulative success by attempt, with a writer's note after each failure."""
    rng = random.Random(derive_seed("writers", name))
    advice: dict[str, list[Sequence[Advice]]] = {task.id: [] for task in probes.tasks}
    texts: dict[str, list[str]] = {task.id: [] for task in probes.tasks}

    def note(episode: Episode) -> None:
        id, trajectory = episode.task.id, episode.trajectory
        said = WRITERS[name](reflections.find(trajectory.opening, trajectory.steps, advice[id]), rng)
        advice[id].append(said)
        texts[id].append(phrasing.note(said, rng))

    return chains(len(probes.tasks), lambda trial: probes.play(lambda task: texts[task.id], name, trial=trial), note)


def sampled(probes: Probe) -> list[float]:
    """Cumulative success by attempt, without notes; the first attempt is greedy."""

    def play(trial: int) -> dict[str, Episode]:
        return probes.play(lambda _: (), "sampled", 1.0 if trial else 0.0, trial)

    return chains(len(probes.tasks), play, lambda _: None)


def chains(tasks: int, play: Callable[[int], dict[str, Episode]], failed: Callable[[Episode], None]) -> list[float]:
    """The share of so many tasks that are solved after each attempt; ``failed`` gets the failures of the others."""
    solved: set[str] = set()
    found: list[float] = []
    for trial in range(ATTEMPTS):
        for id, episode in play(trial).items():
            if episode.success:
                solved.add(id)
            elif id not in solved:
                failed(episode)
        found.append(len(solved) / tasks)
    return found


def main() -> None:
    arguments = parser(__doc__).parse_args()
    probes = Probe(arguments.model, arguments.games, arguments.tasks)
    with probes.parts:
        rows = {name: with_notes(probes, name, PHRASINGS[arguments.phrasing]) for name in WRITERS}
        for name, row in {**rows, "sampled": sampled(probes)}.items():
            print(f"{name:10}", *(f"{share:.3f}" for share in row))


if __name__ == "__main__":
    main()
