"""``retro memory show``: prints the bank of a memory that learns across tasks, and what it recalls."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from textwrap import indent
from typing import Any

from retro.agent.loading import recorded_prompts
from retro.agent.records import EXPORT, ExportRecord
from retro.config import ConfigError, MemorySection, RunConfig, load_config, parse_section
from retro.envs import make_taskset
from retro.layout import RunFolder
from retro.memory import ListedEntry, ListingMemory, Query
from retro.memory.bank import FACTS, BankFacts, bank_of, make_memory
from retro.memory.entries import tokens
from retro.prompts import PromptLibrary, Prompts, shipped
from retro.reading import cut, escaped
from retro.types import Recalled, Split, Task, to_json


def show_bank(folder: Path, text: str | None, task: str | None, limit: int | None, trusted: bool) -> None:
    """Print the bank in a run, an export or a folder of its own, the most valuable entries first.

    Args:
        text: Instead of the entries, print what is recalled for a task that begins with this text.
        task: Likewise for the task of a run with this id.
        limit: How many entries are printed; None prints JSON, with all of them.
        trusted: Whether the code of a memory of one's own may run.

    Raises:
        ConfigError: if there is no bank, or none of the task or text that was given.
    """
    bank = bank_folder(folder)
    facts = BankFacts.read(bank)
    kind = str(facts.memory.get("kind"))
    if ":" in kind and not trusted:
        raise ConfigError(
            f"{bank}: the memory {cut(kind)} is code of one's own, which would run with your rights. Only you can "
            "allow that: --trust-remote-code"
        )
    memory = make_memory(parse_section(MemorySection, facts.memory), bank)
    entries = memory.listing() if isinstance(memory, ListingMemory) else None
    queries = list(_queries(folder, text, task, entries or ()))
    recalled = [(query, _worded(folder, query, memory.recall(query))) for query in queries]
    if limit is None:
        print(json.dumps(_document(facts, entries, recalled), indent=1))
        return
    size = [f"{facts.bytes:,} bytes", f"digest {escaped(facts.digest)}"]
    if entries is not None:
        size.insert(0, f"{len(entries):,} entries of {sum(tokens(entry.text) for entry in entries):,} tokens")
    print(", ".join([escaped(kind), *size]))
    curated = f" and {facts.curator_tokens:,} of the curator" if facts.curator_tokens else ""
    print(f"learnt from {facts.episodes:,} episodes, which took {facts.actor_tokens:,} tokens of the actor{curated}")
    lines = _entries(entries, limit) if not queries else _recalled(recalled)
    print(*lines, sep="\n")


def bank_folder(folder: Path) -> Path:
    """The folder of the bank in a run or an export, or the folder itself.

    Raises:
        ConfigError: if there is none.
    """
    run = RunFolder(folder)
    for found in (folder, run.memory):  # an export keeps its bank where a run does
        if (found / FACTS).is_file():
            return found
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if (folder / EXPORT).is_file():
        memory = ExportRecord.read(folder).memory
        kind = memory.chosen if isinstance(memory, MemorySection) else memory["kind"]
        raise ConfigError(f"{folder}: this export has no bank: its memory {cut(kind)} does not learn across tasks")
    if not run.config.is_file():
        raise ConfigError(f"{folder}: neither a run, nor an export, nor a bank: it has no {FACTS}")
    config = load_config(run.config)
    if bank_of(config.memory, config) is None:
        raise ConfigError(
            f"{folder}: this run has no bank: its memory {config.memory.chosen} does not learn across tasks"
        )
    raise ConfigError(f"{folder}: this run has no bank yet: retro memory {run.config}")


def _queries(folder: Path, text: str | None, task: str | None, entries: Sequence[ListedEntry]) -> Iterator[Query]:
    """What the memory is asked: for a task of the run, or in each environment of the bank for a text."""
    if text is not None and task is not None:
        raise ConfigError("--query and --task: give one of the two")
    if text is not None:
        for environment in sorted({entry.environment for entry in entries}) or [""]:
            yield Query(Task(environment, "", Split.TEST), text)
    if task is not None:
        config = RunFolder(folder).config
        if not config.is_file():
            raise ConfigError(f"--task: {folder} is not a run, whose config names the environment: use --query TEXT")
        yield _opened(load_config(config), task)


def _worded(folder: Path, query: Query, recalled: Recalled) -> Recalled:
    """``recalled`` in the words of the run's or the export's prompts, or of those that ship for the environment."""
    if RunFolder(folder).config.is_file():
        prompts: Prompts = PromptLibrary.from_section(load_config(RunFolder(folder).config).environment)
    elif (folder / EXPORT).is_file():
        prompts = recorded_prompts(folder, ExportRecord.read(folder))
    elif query.task.environment in shipped():
        prompts = PromptLibrary()
    else:
        return recalled
    return prompts.of(query.task.environment).worded(recalled, query.opening)


def _opened(config: RunConfig, id: str) -> Query:
    """The query at the beginning of a task of the run."""
    counts = config.environment.tasks
    taskset = make_taskset(config.environment.name, config.environment.options)
    try:
        for split in Split:
            for task in taskset.tasks(split, getattr(counts, split.value), counts.offset):
                if task.id == id:
                    environment = taskset.make(task)
                    try:
                        return Query(task, environment.reset()[0])
                    finally:
                        environment.close()
    finally:
        taskset.close()
    raise ConfigError(f"--task {cut(id)}: not among the tasks of this run (environment.tasks)")


def _entries(entries: Sequence[ListedEntry] | None, limit: int) -> Iterator[str]:
    if entries is None:
        yield "\nThis memory does not list its entries; --query TEXT prints what it recalls."
        return
    for number, entry in enumerate(entries[:limit], start=1):
        numbers = [f"{name} {value:.3g}" for name, value in entry.numbers.items()]
        yield _block(f"{number}.", entry.id, entry.text, [entry.environment, entry.kind, *numbers])
    if len(entries) > limit:
        yield f"\n{len(entries) - limit:,} more: --limit {len(entries)}"


def _recalled(recalled: Sequence[tuple[Query, Recalled]]) -> Iterator[str]:
    for query, found in recalled:
        of = ", ".join(filter(None, (query.task.environment, query.task.id, query.task.kind))) or "any environment"
        yield f'\nrecalled, in the order of the prompt, for "{cut(query.opening)}" ({escaped(of)})'
        for id, text in zip(found.ids, found.entries, strict=True):
            yield _block("-", id, text, [])
        if not found.entries:
            yield "nothing"


def _block(mark: str, id: str, text: str, facts: Sequence[str]) -> str:
    head = " · ".join(filter(None, (*facts, f"{tokens(text)} tokens", id)))
    body = indent(escaped(text, kept="\n"), "   ")
    return f"\n{mark} {escaped(head)}\n{body}"


def _document(
    facts: BankFacts, entries: Sequence[ListedEntry] | None, recalled: Sequence[tuple[Query, Recalled]]
) -> dict[str, Any]:
    asked = [
        {"environment": query.task.environment, "task": query.task.id, "opening": query.opening, **to_json(found)}
        for query, found in recalled
    ]
    listed = None if entries is None else [to_json(entry) | {"tokens": tokens(entry.text)} for entry in entries]
    return {"facts": to_json(facts), "entries": listed, "recalled": asked}
