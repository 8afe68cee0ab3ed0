"""Cuts a collection into waves of tasks: to stay within a number of episodes, or to let the memory learn in between."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retro.config import ConfigError, MemorySection, RunConfig
from retro.memory.bank import BankFacts, fold_bank, fold_order, learns
from retro.memory.base import Ask
from retro.types import Episode, Recalled, Split, Task, Trajectory

logger = logging.getLogger(__name__)

Trees = list[list[Episode]]
"""The episodes of each task."""
Play = Callable[[Sequence[Task], Path | None, str], Trees]
"""Plays tasks with the bank in a folder (None: without one); the text labels the progress."""


class ActorFailedError(ValueError):
    """The actor (or the environment) failed in too many tasks. The same command continues the collection."""


def outcome(episode: Episode) -> Episode:
    """An episode without its texts: what the summary of a collection needs of it. The buffer has the rest."""
    reflection = episode.reflection and replace(episode.reflection, text="")
    return replace(episode, trajectory=Trajectory(""), reflection=reflection, recalled=Recalled())


@dataclass(frozen=True, slots=True)
class Round:
    """Tasks that were played with the same bank."""

    trees: Trees
    """Without their texts, once the memory has learnt from them."""
    bank: BankFacts | None
    """None in the first round."""

    def to_json(self) -> dict[str, Any]:
        first = [tree[0].success for tree in self.trees]
        entries = None if self.bank is None else {"digest": self.bank.digest, "entries": self.bank.entries}
        return {"tasks": len(first), "first_success": sum(first) / len(first), "bank": entries}


def check_rounds(config: RunConfig) -> None:
    """Raise ConfigError if the memory is to learn between rounds (``collect.round_tasks``), and cannot; or if it would
    learn from steps that retries only repeat (``collect.branch``)."""
    if config.collect.branch != "start" and learns(config.memory):
        raise ConfigError(
            f"collect.branch={config.collect.branch}: a bank would count the steps that a retry keeps once more; let "
            "retries begin at the start, or choose a memory that does not learn across tasks"
        )
    if config.collect.round_tasks is None:
        return
    if not learns(config.memory):
        raise ConfigError(
            f"collect.round_tasks: memory.kind={config.memory.chosen} does not learn across tasks; leave the key out, "
            "or choose a memory that does (retro list)"
        )
    if "train" not in config.collect.splits or not config.environment.tasks.train:
        raise ConfigError(
            "collect.round_tasks: the memory learns from train tasks, and none are collected; see collect.splits and "
            "environment.tasks"
        )


def collect_within(episodes: int, most: int, tasks: Sequence[Task], play: Play) -> Trees:
    """The trees of the first of ``tasks`` that hold as many as ``episodes``, where a tree has ``most`` at most.

    A wave has as many tasks as cannot exceed what is left, so the outcome does not depend on the runner.
    """
    trees: Trees = []
    left = episodes
    while left > 0 and len(trees) < len(tasks):
        wave = tasks[len(trees) :][: max(1, left // most)]
        trees += play(wave, None, "collect")
        left = episodes - sum(map(len, trees))
    if left > 0:
        logger.warning(
            "collect.episodes is %d, but all %d tasks had only %d: raise environment.tasks",
            *(episodes, len(tasks), episodes - left),
        )
    return trees


def collect_in_rounds(
    size: int, tasks: Sequence[Task], memory: MemorySection, folder: Path, play: Play, ask: Ask | None = None
) -> tuple[list[Round], Path]:
    """Play ``size`` train tasks, let the memory learn from them, and play the next ones with its bank.

    The tasks of other splits are played last, with the bank of all train tasks; nothing is learnt from them. A bank is
    folded from the one before it and from all episodes of a round, in a fixed order, so neither the runner nor a stop
    changes it.

    Args:
        tasks: At least one of them is a train task.
        folder: Gets the bank after each round, in a folder named by the round's number, from 1. A folder holds one bank
            for good, because worker processes keep the players that they have built.
        ask: The memory's curator.

    Returns:
        The rounds, and the folder of the last bank.

    Raises:
        ActorFailedError: if an episode of a round broke off, before the memory learns from an incomplete round.
    """
    train = [task for task in tasks if task.split is Split.TRAIN]
    others = [task for task in tasks if task.split is not Split.TRAIN]
    waves = [train[first : first + size] for first in range(0, len(train), size)]
    rounds: list[Round] = []
    bank: Path | None = None
    for number, wave in enumerate(waves, start=1):
        trees = play(wave, bank, f"collect, round {number} of {len(waves)}")
        rounds.append(Round(trees, None if bank is None else BankFacts.read(bank)))
        played = [episode for tree in trees for episode in tree]
        refuse_a_broken_round(number, played)
        learnt = folder / str(number)
        fold_bank(memory, sorted(played, key=fold_order), learnt, bank, ask)
        rounds[-1] = replace(rounds[-1], trees=[list(map(outcome, tree)) for tree in trees])
        bank = learnt
    assert bank is not None, "there was a round"
    if others:
        rounds.append(Round(play(others, bank, "collect, other splits"), BankFacts.read(bank)))
    return rounds, bank


def refuse_a_broken_round(number: int, played: Sequence[Episode]) -> None:
    """Raise :class:`ActorFailedError` if an error ended an episode of a round from which the memory is to learn."""
    broken = [episode for episode in played if episode.broken]
    if broken:
        raise ActorFailedError(
            f"round {number}: the {broken[0].broken_by} failed in task {broken[0].task.id}: {broken[0].info['error']}; "
            "the memory learns only from whole rounds. What was played is kept: correct this, and run the same command "
            "again; if this task can never be played, collect without collect.round_tasks"
        )
