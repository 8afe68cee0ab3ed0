"""What the built-in banks share: their entries, their files, their bounds, and the control with shuffled kinds."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import ValidationError

from retro.artifacts import write_atomically
from retro.config import ConfigError, MemorySection, NonNegativeInt, PositiveInt, Recall
from retro.memory.base import ListedEntry, Query
from retro.memory.similarity import Index, TfIdf
from retro.memory.vectors import Vectors, encoder
from retro.reading import UnreadableError, encodable, parse_json, problems, read_lines
from retro.types import Episode, Recalled, RecalledEntries, derive_seed, from_json, to_json

ENTRIES = "entries.jsonl"
BYTES_PER_TOKEN = 4
MAX_OPENING_CHARS = 4_000
"""Of a longer opening, only the beginning is kept and compared."""


class BankOptions(MemorySection):
    capacity: PositiveInt = 200
    """How many entries the bank holds at most."""
    max_tokens: PositiveInt = 256
    """The longest entry, in tokens of four bytes."""
    vectors: Annotated[str | None, Recall] = None
    """A transformers encoder, as a folder or a name on the hub: openings of tasks are compared by its sentence vectors
    (mean pooling), instead of by TF-IDF."""
    window: Annotated[NonNegativeInt, Recall] = 3
    """How many of the latest reflections on the task itself the actor sees, after what the bank recalls."""
    shuffled: Annotated[bool, Recall] = False
    """The control: recall what suits another task of the bank, one of another kind if there is one. An arm may differ
    from the run's memory in this key."""

    @property
    def parts(self) -> dict[str, str]:
        return {} if self.vectors is None else {"vectors": self.vectors}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Something that was learnt from episodes of one environment."""

    id: str
    environment: str
    task: str
    """The only task that it was learnt from, for which it is not recalled; empty if there were several."""
    kind: str
    """The kind of the first of these tasks."""
    opening: str
    """The observation that states the first of these tasks."""


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class EntryBank(ABC, Generic[E]):
    """A bank of at most ``capacity`` entries, of which those are recalled that suit the opening of the task."""

    entry_class: ClassVar[type[Any]]
    options: BankOptions
    entries: Mapping[str, E] = field(default_factory=dict)
    """By id."""

    @classmethod
    def from_options(cls, options: BankOptions) -> Self:
        if options.vectors is not None:
            encoder(options.vectors)  # before anything is played
        return cls(options)

    @abstractmethod
    def choose(self, near: Sequence[tuple[float, E]], opening: str) -> Sequence[E]:
        """The entries to show, among entries with the similarities of their openings to the task's; the best last."""

    @abstractmethod
    def shown(self, entry: E) -> tuple[str, str]:
        """The id and the text by which an actor is shown an entry."""

    def facts(self, entry: E) -> dict[str, Any]:
        """What a prompt folder's ``memory.jinja`` may know of an entry, beside its text."""
        return {"kind": entry.kind, "steps": []}

    @abstractmethod
    def value(self, entry: E) -> tuple[float, ...]:
        """What an entry is worth: when the bank is full, the one with the lowest value goes. Ids decide between equal
        values; they are hashes, so that no task is favoured."""

    def crowded(self, entries: Sequence[E]) -> Sequence[E]:
        """Entries of which one has to go; none if there is room for all."""
        return list(entries) if len(entries) > self.options.capacity else []

    @abstractmethod
    def fold(self, episode: Episode) -> Self:
        """See :class:`~retro.memory.base.LearningMemory`."""

    def recall(self, query: Query) -> Recalled:
        chosen = self.choose(*self._near(query))
        shown = [self.shown(entry) for entry in chosen]
        own = Recalled.latest([reflection.text for reflection in query.reflections], self.options.window)
        return RecalledEntries(
            entries=(*(text for _, text in shown), *own.entries),
            ids=(*(id for id, _ in shown), *own.ids),
            facts=(*map(self.facts, chosen), *(None for _ in own.entries)),
        )

    def having(self, *entries: E) -> Self:
        """The bank with these entries, which replace those of the same ids, within its bounds."""
        kept = {**self.entries, **{entry.id: entry for entry in entries}}
        while crowded := self.crowded(list(kept.values())):
            del kept[min(crowded, key=lambda entry: (self.value(entry), entry.id)).id]
        return replace(self, entries=kept)

    def listing(self) -> list[ListedEntry]:
        """See :class:`~retro.memory.base.ListingMemory`."""
        ordered = sorted(self.entries.values(), key=lambda entry: ([-part for part in self.value(entry)], entry.id))
        return [
            ListedEntry(id, entry.environment, entry.kind, text, _numbers(entry))
            for entry in ordered
            for id, text in [self.shown(entry)]
        ]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self._content).hexdigest()

    def save(self, folder: Path) -> None:
        write_atomically(folder / ENTRIES, self._content)

    def load(self, folder: Path) -> Self:
        """This memory with the bank in a folder.

        Raises:
            ConfigError: naming the file and the line, if it is not there or damaged.
        """
        path = folder / ENTRIES
        try:
            entries = [self._read(line, f"{path}: line {number}") for number, line in read_lines(path)]
        except (OSError, UnreadableError) as error:
            raise ConfigError(f"{error}; run the stage memory again") from None
        return replace(self, entries={entry.id: entry for entry in entries})

    @property
    def _content(self) -> bytes:
        """One line of JSON for each entry, ordered by id."""
        lines = (
            json.dumps(to_json(self.entries[id]), ensure_ascii=False, sort_keys=True) for id in sorted(self.entries)
        )
        return "".join(f"{line}\n" for line in lines).encode()

    def _read(self, line: bytes, origin: str) -> E:
        try:
            entry: E = from_json(self.entry_class, parse_json(line, origin))
        except ValidationError as error:
            raise UnreadableError(f"{origin}: not an entry of a bank ({problems(error)})") from None
        return entry

    def _near(self, query: Query) -> tuple[list[tuple[float, E]], str]:
        """The entries that may be recalled with their similarities, and the opening that they were compared with."""
        entries, index = self._index.get(query.task.environment, ((), TfIdf(())))
        opening, own = query.opening, {query.task.id}
        if self.options.shuffled and entries:
            other = self._other(query, entries)
            opening, own = other.opening, own | {other.task}
        similarities = index.similarities(opening)
        pairs = zip(similarities, entries, strict=True)
        return [pair for pair in pairs if not pair[1].task or pair[1].task not in own], opening

    def _other(self, query: Query, entries: Sequence[E]) -> E:
        """An entry of another kind than the task's, or else of another task; equal tasks get equal entries."""
        others = [entry for entry in entries if entry.task != query.task.id] or entries
        others = [entry for entry in others if entry.kind != query.task.kind] or others
        return min(others, key=lambda entry: derive_seed("shuffled", query.task.environment, query.task.id, entry.id))

    @cached_property
    def _index(self) -> dict[str, tuple[Sequence[E], Index]]:
        """The entries of each environment by id, and the index of their openings: made once for each bank."""
        grouped: defaultdict[str, list[E]] = defaultdict(list)
        for id in sorted(self.entries):
            grouped[self.entries[id].environment].append(self.entries[id])
        index = TfIdf if self.options.vectors is None else partial(Vectors, self.options.vectors)
        return {name: (group, index([entry.opening for entry in group])) for name, group in grouped.items()}


def _numbers(entry: Entry) -> dict[str, float]:
    """The fields of an entry that are numbers."""
    values = {item.name.rstrip("_"): getattr(entry, item.name) for item in fields(entry)}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}


def source(episode: Episode) -> dict[str, Any]:
    """The fields of an entry that was learnt from an episode, without its id."""
    task, opening = episode.task, encodable(episode.trajectory.opening[:MAX_OPENING_CHARS])
    return {"environment": task.environment, "task": task.id, "kind": task.kind, "opening": opening}


def of_several(entry: E, episode: Episode, **changes: Any) -> E:
    """An entry with ``changes`` that were learnt from one more episode."""
    return replace(entry, task=entry.task if entry.task == episode.task.id else "", **changes)


def entry_id(*key: str) -> str:
    """The id of an entry, 16 hexadecimal digits that ``key`` determines."""
    return hashlib.sha256("\x1f".join(map(encodable, key)).encode()).hexdigest()[:16]


def tokens(text: str) -> int:
    """The number of tokens of a text, counted as four bytes each: a memory knows no tokenizer."""
    return -(-len(text.encode()) // BYTES_PER_TOKEN)


def shortened(text: str, max_tokens: int) -> str:
    """A text of at most ``max_tokens`` tokens, of which a longer one loses its end, visibly."""
    text = encodable(text).strip()
    if tokens(text) <= max_tokens:
        return text
    kept = text.encode()[: BYTES_PER_TOKEN * max_tokens - len("…".encode())]
    return f"{kept.decode(errors='ignore').rstrip()}…"
