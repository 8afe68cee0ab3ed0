"""A playbook of bullets with counters, which grows by operations (ACE, arXiv 2510.04618)."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, TypeAdapter, ValidationError, model_validator

from retro.config import ActorSection, Fraction, NonNegativeInt, OneOf, PositiveInt, Recall, Section
from retro.memory.base import Ask
from retro.memory.curation import counted, curation_prompt, operations
from retro.memory.entries import MAX_OPENING_CHARS, BankOptions, Entry, EntryBank, entry_id, shortened, source, tokens
from retro.memory.similarity import TfIdf
from retro.reading import cut, problems
from retro.types import Episode

MAX_SENTENCES = 20
"""Of a longer reflection, only the first sentences become bullets."""
EQUAL = 0.9
"""Bullets with this cosine, or a higher one, and the same numbers are merged."""
MAX_COUNT = 2**31
"""The most that one operation may add to a counter: files of banks hold 64-bit integers."""
_NUMBER = re.compile(r"\d+")
_ENDS = re.compile(r"(?<=[.!?])\s+|[\r\n]+")

logger = logging.getLogger(__name__)


def _built_in(curator: Any) -> Any:
    """Refuse an actor of somebody's own: whoever loads an export reads this key, and must not import code by it."""
    kind = curator.get("kind", "") if isinstance(curator, Mapping) else curator
    if isinstance(kind, str) and ":" in kind:
        raise ValueError(f"{cut(kind)} is code of one's own: a curator is one of the built-in kinds of actors")
    return curator


class PlaybookOptions(BankOptions):
    kind: Literal["playbook"] = "playbook"
    max_tokens: PositiveInt = 64
    """The longest bullet, in tokens of four bytes; longer sentences lose their end."""
    budget: PositiveInt = 4000
    """The tokens of all bullets together, at most."""
    bullets: Annotated[PositiveInt, Recall] = 5
    """How many bullets the actor sees, the best last."""
    min_similarity: Annotated[Fraction, Recall] = 0.4
    """The least cosine between the openings of the bullet's task and of the one that is played."""
    curator: Annotated[OneOf[ActorSection] | None, BeforeValidator(_built_in)] = None
    """A language model that writes the operations, described as an actor is (``{kind: openai, model: …, max_tokens:
    2000}``). By default they are made by rule."""
    retries_per_request: PositiveInt = 8
    """How many retries one request to the curator is about."""
    counters: Annotated[bool, Recall] = True
    """Whether the counters choose the bullets. Without them, which is a control, similarity alone does."""

    @property
    def recalling(self) -> Self:
        return self.model_copy(update={"curator": None, "retries_per_request": 8})

    @model_validator(mode="after")
    def _whole_prompts(self) -> Self:
        if self.curator is not None and self.curator.context_tokens is not None:
            raise ValueError(
                "curator.context_tokens: its prompts are not shortened; lower retries_per_request or budget instead"
            )
        return self


@dataclass(frozen=True, kw_only=True)
class Bullet(Entry):
    """A sentence with the numbers of times that it helped and that it did harm."""

    text: str
    helpful: NonNegativeInt = 0
    harmful: NonNegativeInt = 0

    @property
    def balance(self) -> int:
        return self.helpful - self.harmful


class Add(Section):
    """Adds a bullet with counters at zero; of a bullet that is there, it notes one more task."""

    op: Literal["add"]
    environment: str
    task: str
    kind: str
    opening: Annotated[str, Field(max_length=MAX_OPENING_CHARS)]
    text: Annotated[str, Field(min_length=1)]


class Update(Section):
    """Adds to the counters of a bullet."""

    op: Literal["update"]
    id: str
    helpful: Annotated[NonNegativeInt, Field(le=MAX_COUNT)] = 0
    harmful: Annotated[NonNegativeInt, Field(le=MAX_COUNT)] = 0


class Merge(Section):
    """Replaces ``others`` by the bullet ``into``, which gets their counters added to its own."""

    op: Literal["merge"]
    into: str
    others: Annotated[tuple[str, ...], Field(min_length=1)]


class Delete(Section):
    op: Literal["delete"]
    id: str


Operation = Annotated[Add | Update | Merge | Delete, Field(discriminator="op")]
_ORDER = (Add, Update, Merge, Delete)


@dataclass(frozen=True)
class Playbook(EntryBank[Bullet]):
    """Keeps the sentences of reflections as bullets, and shows those of similar tasks that helped most often.

    A bullet helped if a retry succeeded whose reflection, or whose recalled entries, contained it. It did harm if this
    retry earned nothing; a return in between counts for neither. When there are too many bullets, or too many tokens in
    them, those with the lowest balance of helpful and harmful go.
    """

    Options: ClassVar[type[PlaybookOptions]] = PlaybookOptions
    entry_class = Bullet
    options: PlaybookOptions

    def fold(self, episode: Episode) -> Self:
        if episode.broken:
            return self
        grown = self.apply(self.curate(episode))
        return grown.refined(grown.entries.keys() - self.entries.keys())

    def fold_with(self, episodes: Iterable[Episode], ask: Ask) -> Self:
        """See :class:`~retro.memory.base.CuratedMemory`: each request is about ``retries_per_request`` retries."""
        grown, waiting = self, list[Episode]()
        for episode in episodes:
            if not episode.broken:
                waiting.append(episode)
            if sum(waits.reflection is not None for waits in waiting) == self.options.retries_per_request:
                grown, waiting = grown._curated(waiting, ask), []
        return grown._curated(waiting, ask)

    def _curated(self, episodes: Sequence[Episode], ask: Ask) -> Self:
        retries = [episode for episode in episodes if episode.reflection is not None]
        read = {episode.id: {id for id in episode.recalled.ids if id in self.entries} for episode in episodes}
        changes: list[dict[str, Any]] = []
        if retries:
            environments = {episode.task.environment for episode in retries}
            bullets = [
                {"id": id, "text": bullet.text, "helpful": bullet.helpful, "harmful": bullet.harmful}
                for id, bullet in sorted(self.entries.items())
                if bullet.environment in environments
            ]
            answer = ask(curation_prompt(bullets, retries, self.options.max_tokens))
            for change, lesson_of in operations(answer, retries):
                changes.append(change)
                if lesson_of is not None:
                    id = entry_id(lesson_of.task.environment, change["text"])
                    read[lesson_of.id] |= {id} - self.entries.keys()
        for episode in episodes:
            changes += counted(sorted(read[episode.id]), episode)
        grown = self.apply(changes)
        return grown.refined(grown.entries.keys() - self.entries.keys())

    def choose(self, near: Sequence[tuple[float, Bullet]], opening: str) -> Sequence[Bullet]:
        similar = [pair for pair in near if pair[0] >= self.options.min_similarity]
        ordered = sorted(similar, key=lambda pair: (-pair[1].balance * self.options.counters, -pair[0], pair[1].id))
        return [entry for _, entry in reversed(ordered[: self.options.bullets])]

    def shown(self, entry: Bullet) -> tuple[str, str]:
        return entry.id, entry.text

    def value(self, entry: Bullet) -> tuple[float, ...]:
        return (entry.balance,)

    def crowded(self, entries: Sequence[Bullet]) -> Sequence[Bullet]:
        fits = sum(tokens(entry.text) for entry in entries) <= self.options.budget
        return super().crowded(entries) if fits else entries

    def curate(self, episode: Episode) -> Iterator[dict[str, Any]]:
        """The operations by which an episode changes the playbook."""
        environment, shown = episode.task.environment, {id for id in episode.recalled.ids if id in self.entries}
        for text in sentences(episode, self.options.max_tokens):
            shown.add(entry_id(environment, text))
            yield {"op": "add", "text": text, **source(episode)}
        yield from counted(shown, episode)

    def apply(self, operations: Iterable[object]) -> Self:
        """The playbook after these operations, plain JSON such as ``{"op": "delete", "id": …}``.

        The order of the given ones does not matter: additions come first, then updates, merges and deletions. An
        operation that is malformed, too long, or about a bullet that is not there, changes nothing and is logged.
        """
        entries = dict(self.entries)
        for operation in sorted(_parsed(operations), key=lambda op: (_ORDER.index(type(op)), op.model_dump_json())):
            problem = self._apply(operation, entries)
            if problem:
                _log(operation.model_dump(), problem)
        return replace(self, entries=entries)

    def refined(self, added: Collection[str]) -> Self:
        """The playbook after merging bullets that were ``added`` with others that say the same, within its bounds."""
        bank, ids = self, sorted(self.entries)
        index = TfIdf([self.entries[id].text for id in ids] if added else [])
        for id in sorted(added):
            cosines = zip(ids, index.similarities(self.entries[id].text), strict=True)
            same = [other for other, cosine in cosines if cosine >= EQUAL and bank._agree(id, other)]
            if same:
                first, *others = sorted([id, *same], key=lambda id: (id in added, id))
                bank = bank.apply([{"op": "merge", "into": first, "others": others}])
        gone = bank.entries.keys() - bank.having().entries.keys()
        return bank.apply({"op": "delete", "id": id} for id in gone)

    def _agree(self, id: str, other: str) -> bool:
        """Whether these are two bullets of one environment with the same numbers."""
        if id == other or not {id, other} <= self.entries.keys():
            return False
        one, two = self.entries[id], self.entries[other]
        return one.environment == two.environment and _NUMBER.findall(one.text) == _NUMBER.findall(two.text)

    def _apply(self, operation: Add | Update | Merge | Delete, entries: dict[str, Bullet]) -> str:
        """Apply one operation to ``entries``, or return why it cannot be applied."""
        match operation:
            case Add(text=text):
                if tokens(text) > self.options.max_tokens:
                    return f"its text has more than {self.options.max_tokens} tokens (memory.max_tokens)"
                bullet = Bullet(id=entry_id(operation.environment, text), **operation.model_dump(exclude={"op"}))
                entries[bullet.id] = _joined(entries.get(bullet.id, bullet), bullet)
            case Merge(into=into, others=others):
                unknown = [id for id in (into, *others) if id not in entries]
                if unknown or into in others or len(set(others)) < len(others):
                    return f"no such bullet: {', '.join(unknown)}" if unknown else "it names a bullet twice"
                if any(entries[id].environment != entries[into].environment for id in others):
                    return "its bullets are of several environments"
                for id in others:
                    entries[into] = _joined(entries[into], entries.pop(id))
            case Update(id=id) if id in entries:
                helpful, harmful = entries[id].helpful + operation.helpful, entries[id].harmful + operation.harmful
                entries[id] = replace(entries[id], helpful=helpful, harmful=harmful)
            case Delete(id=id) if id in entries:
                del entries[id]
            case _:
                return "no such bullet"
        return ""


def sentences(episode: Episode, max_tokens: int) -> list[str]:
    """The sentences of the reflection that led to an episode, without repetitions."""
    text = "" if episode.reflection is None else episode.reflection.text
    found = (shortened(sentence, max_tokens) for sentence in _ENDS.split(text, MAX_SENTENCES)[:MAX_SENTENCES])
    return list(dict.fromkeys(filter(None, found)))


def _joined(bullet: Bullet, other: Bullet) -> Bullet:
    """A bullet with the tasks and the counters of both; which of them comes first decides its id and text alone."""
    kind, opening = min((bullet.kind, bullet.opening), (other.kind, other.opening))
    return replace(
        bullet,
        task=bullet.task if bullet.task == other.task else "",
        kind=kind,
        opening=opening,
        helpful=bullet.helpful + other.helpful,
        harmful=bullet.harmful + other.harmful,
    )


def _parsed(operations: Iterable[object]) -> Iterator[Add | Update | Merge | Delete]:
    for operation in operations:
        try:
            yield _adapter().validate_python(operation)
        except ValidationError as error:
            _log(operation, problems(error))


def _log(operation: object, problem: str) -> None:
    logger.warning("playbook: an operation is left out: %s: %s", cut(repr(operation)), cut(problem))


@cache
def _adapter() -> TypeAdapter[Any]:
    return TypeAdapter(Operation)
