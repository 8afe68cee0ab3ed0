"""The bank of a memory that learns across tasks: a folder with ``bank.json``, which names it, and ``content/``."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from retro.artifacts import digest_parts, write_json
from retro.config import ActorSection, ConfigError, MemorySection, Recall, RunConfig, Section, build, deciding, resolve
from retro.layout import RunFolder
from retro.memory.base import Ask, CuratedMemory, LearningMemory, ListingMemory, Memory
from retro.reading import UnreadableError, problems, read_json
from retro.types import Count, Episode, from_json, to_json

FACTS = "bank.json"
CONTENT = "content"
FORMAT = "2"
"""Of ``bank.json``. Since 2, it has the memory's section, the tokens and the size."""
LATER: dict[str, Any] = {"vectors": None, "curator": None, "retries_per_request": 8}
"""Keys of built-in memories that were added later, with their defaults (see :func:`identity`)."""


@dataclass(frozen=True, slots=True)
class BankFacts:
    """``bank.json``: what identifies a bank, and what it cost."""

    digest: str
    """Of the content, as its memory computes it."""
    memory: dict[str, Any]
    """The config section of the memory that folded it."""
    episodes: Count
    """How many episodes it was folded from."""
    actor_tokens: Count
    """What these episodes cost: the tokens of the actor's requests, prompts included."""
    entries: Count | None
    """None for a memory of one's own that does not list its entries."""
    bytes: Count
    """The size of the content's files."""
    curator_tokens: Count = 0
    """What the language model cost that curated it: tokens of prompts and answers."""

    @classmethod
    def read(cls, folder: Path) -> BankFacts:
        """The facts of the bank in a folder. Raises ConfigError if there is none."""
        path = folder / FACTS
        if not path.is_file():
            raise ConfigError(f"{path}: no such file: the memory has learnt nothing yet; run the stage memory first")
        try:
            return from_json(cls, read_json(path))
        except (UnreadableError, ValidationError) as error:
            why = problems(error) if isinstance(error, ValidationError) else error
            raise ConfigError(f"{path}: not the facts of a bank ({why}); run the stage memory again") from None


def learns(section: MemorySection) -> bool:
    """Whether the memory of a config learns across tasks. Raises ConfigError if there is no such memory."""
    return hasattr(resolve(section.point, section.chosen), "fold")


def bank_of(section: MemorySection, config: RunConfig) -> Path | None:
    """The folder of a memory's bank, which the stage ``memory`` writes; None if the memory does not learn.

    Raises:
        ConfigError: if it learns, but something else than the run's own memory, which alone has a bank.
    """
    if not learns(section):
        return None
    if _learning(section) != _learning(config.memory):
        raise ConfigError(
            f"memory {section.chosen!r} learns across tasks but is not the run's own memory, which alone has a bank"
        )
    return RunFolder(config.run_dir).memory


def _learning(section: Section) -> dict[str, Any]:
    """The values of a memory's section that decide what its bank holds: those that are not marked ``Recall``."""
    values = deciding(section)
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if Recall in field.metadata:
            del values[name]
        elif isinstance(value, Section):  # the options of a kind of one's own
            values[name] = _learning(value)
    return values


def identity(section: MemorySection) -> dict[str, Any]:
    """The values of a memory's section that are part of the ids of what is played with it, beside the bank's digest.

    A key that was added after the memories had ids is left out while it has its default, so earlier ids stay.
    """
    return {key: value for key, value in deciding(section.recalling).items() if key not in LATER or value != LATER[key]}


def bank_inputs(config: RunConfig) -> dict[str, str]:
    """The digests of the run's bank, and of what is used with it, as inputs of stages that play with it; empty if the
    memory does not learn.

    Raises:
        ConfigError: if the stage ``memory`` has not written it yet.
    """
    bank = bank_of(config.memory, config)
    return {} if bank is None else {"bank": BankFacts.read(bank).digest, **digest_parts(config.memory)}


def make_memory(section: MemorySection, bank: Path | None = None) -> Memory:
    """The memory of a config section, with the bank in a folder; without a bank, it has learnt nothing.

    Raises:
        ConfigError: if the folder has no bank, or the bank does not match its digest.
    """
    memory: Memory = build(section)
    if bank is None or not isinstance(memory, LearningMemory):
        return memory
    named, loaded = BankFacts.read(bank).digest, memory.load(bank / CONTENT)
    if loaded.digest != named:
        raise ConfigError(
            f"{bank}: the bank is {loaded.digest}, but {FACTS} says {named}: it was changed, or is damaged"
        )
    return loaded


def fold_order(episode: Episode) -> tuple[str, str, int, str]:
    """The order in which a bank is folded: environment, task, trial and id, as the buffer has the episodes."""
    return episode.task.environment, episode.task.id, episode.trial, episode.id


def curator(section: MemorySection) -> ActorSection | None:
    """The language model that a memory asks while it learns, if it asks one."""
    found: ActorSection | None = getattr(getattr(section, "options", section), "curator", None)
    return found


def fold_bank(
    section: MemorySection,
    episodes: Iterable[Episode],
    folder: Path,
    onto: Path | None = None,
    ask: Ask | None = None,
) -> BankFacts:
    """Learn from finished episodes, save the bank into ``folder``, and return its facts.

    Args:
        episodes: In :func:`fold_order`, so that the bank does not depend on the order in which they were played or
            stored. One at a time is in memory.
        onto: The folder of a bank of the same memory, from which learning goes on.
        ask: The memory's :func:`curator`.

    Raises:
        ConfigError: if a retry begins within a failed episode.
        ValueError: if the episodes are in another order, or the memory has a curator and ``ask`` is None.
    """
    memory = make_memory(section, onto)
    assert isinstance(memory, LearningMemory), "the caller has asked learns()"
    before = None if onto is None else BankFacts.read(onto)
    count, actor_tokens = (0, 0) if before is None else (before.episodes, before.actor_tokens)
    curator_tokens = 0 if before is None else before.curator_tokens

    def ordered() -> Iterator[Episode]:
        nonlocal count, actor_tokens
        last = ("", "", 0, "")
        for episode in episodes:
            key = fold_order(episode)
            if key <= last:
                raise ValueError(
                    f"a bank is folded in the order of environment, task, trial and id: {last}, then {key}"
                )
            if episode.info.get("kept_steps"):
                raise ConfigError(
                    f"retry {episode.id} of task {episode.task.id} begins within a failed episode (collect.branch): a "
                    "bank would count the steps that it keeps once more; fold a buffer whose retries begin at the start"
                )
            last, count, actor_tokens = key, count + 1, actor_tokens + episode.usage.total
            yield episode.without_advice()

    if curator(section) is None:
        for episode in ordered():
            memory = memory.fold(episode)
    elif ask is None or not isinstance(memory, CuratedMemory):
        raise ValueError("the memory has a curator: fold_bank needs someone to ask, and the memory fold_with")
    else:
        spent = ask.tokens
        memory = memory.fold_with(ordered(), ask)
        curator_tokens += ask.tokens - spent
    content = folder / CONTENT
    if content.exists():  # left by a stage that was interrupted
        shutil.rmtree(content)
    content.mkdir(parents=True)
    memory.save(content)
    facts = BankFacts(
        digest=memory.digest,
        memory=section.recalling.model_dump(mode="json"),
        episodes=count,
        actor_tokens=actor_tokens,
        entries=len(memory.listing()) if isinstance(memory, ListingMemory) else None,
        bytes=sum(file.stat().st_size for file in content.rglob("*") if file.is_file()),
        curator_tokens=curator_tokens,
    )
    write_json(folder / FACTS, to_json(facts))
    return facts


def copy_bank(source: Path, target: Path) -> None:
    """Copy the bank in ``source``, and no other files."""
    if (target / CONTENT).exists():  # left by a stage that was interrupted
        shutil.rmtree(target / CONTENT)
    shutil.copytree(source / CONTENT, target / CONTENT)
    shutil.copyfile(source / FACTS, target / FACTS)
