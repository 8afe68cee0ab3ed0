"""Procedures with Beta posteriors over their success (MACLA, arXiv 2512.18950), extracted by rule."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from retro.config import NonNegativeFloat, NonNegativeInt, PositiveInt, Recall
from retro.memory.entries import BankOptions, Entry, EntryBank, entry_id, of_several, shortened, source, tokens
from retro.memory.similarity import TfIdf, words
from retro.reading import encodable
from retro.types import Episode, Trajectory

ROUTINE = 3
"""A success of so many procedures is stored as a routine."""
REFINED = 3
"""A procedure is refined after so many successes and as many failures, by the contexts of the latest ones: it keeps no
others, so that a bank soon has its full size."""
MAX_CONTEXT_CHARS = 1_000
MAX_CONDITIONS = 5
RESEMBLES = 0.5
"""The least cosine between the opening of a failure and of the task that count as alike."""
_NUMBERED = re.compile(r"\b([^\W\d_]+) \d+\b")


class ProceduresOptions(BankOptions):
    kind: Literal["procedures"] = "procedures"
    max_tokens: PositiveInt = 256
    """The longest procedure, in tokens of four bytes; an episode with a longer one is not learnt."""
    routines: PositiveInt = 50
    """How many routines the bank holds at most, beside the procedures: orders of procedures that solved a task."""
    candidates: Annotated[PositiveInt, Recall] = 10
    """How many procedures, those of the most similar tasks, are compared by their expected utility."""
    procedures: Annotated[PositiveInt, Recall] = 1
    """How many of them the actor sees, the best last."""
    min_utility: Annotated[float, Recall] = 0.1
    """One is shown only if its expected utility is at least this."""
    cost: Annotated[NonNegativeFloat, Recall] = 0.5
    """C: what a failure costs, where a success gains 1."""
    exploration: Annotated[NonNegativeFloat, Recall] = 0.1
    """λ: the weight of what trying a procedure would tell about it."""


@dataclass(frozen=True)
class Context:
    """Where a procedure was used, and what it led to."""

    opening: str
    ending: str


@dataclass(frozen=True, kw_only=True)
class Procedure(Entry):
    """Generalised steps, such as ``take <mug> from <desk>``, and how often they worked for one kind of task."""

    steps: tuple[str, ...]
    parts: tuple[str, ...] = ()
    """Of a routine: the ids of its procedures, in their order."""
    successes: NonNegativeInt = 0
    failures: NonNegativeInt = 0
    latest: NonNegativeInt
    """The number of the latest episode that used it, counted from 0."""
    worked: tuple[Context, ...] = ()
    failed: tuple[Context, ...] = ()

    @property
    def rate(self) -> float:
        """ρ: the mean of Beta(1 + successes, 1 + failures)."""
        return (1 + self.successes) / (2 + self.successes + self.failures)

    @cached_property
    def preconditions(self) -> frozenset[str]:
        return self._contrast([case.opening for case in self.worked], [case.opening for case in self.failed])

    @cached_property
    def postconditions(self) -> frozenset[str]:
        return self._contrast([case.ending for case in self.worked], [case.ending for case in self.failed])

    @property
    def text(self) -> str:
        conditions = (("needs", self.preconditions), ("leads to", self.postconditions))
        refined = "".join(f"; {name}: {', '.join(sorted(found))}" for name, found in conditions if found)
        count = f"worked {self.successes} of {self.successes + self.failures} times"
        return f"{self.kind}: {'; '.join(self.steps)} ({count}{refined})".removeprefix(": ")

    def _contrast(self, worked: Sequence[str], failed: Sequence[str]) -> frozenset[str]:
        """Words that all successes have and no failure has; none before there are enough of both."""
        if min(self.successes, self.failures) < REFINED:
            return frozenset()
        common = set.intersection(*(set(words(text)) for text in worked)) if worked else set()
        return frozenset(sorted(common.difference(*(words(text) for text in failed)))[:MAX_CONDITIONS])


@dataclass(frozen=True)
class ProcedureBank(EntryBank[Procedure]):
    """Keeps procedures, and shows those with the highest expected utility,

        EU = rel·ρ − risk·(1 − ρ)·C + λ·12·Var[Beta],

    where rel is the similarity of the openings, times the share of the preconditions that the task's opening names,
    and risk is the share of the procedure's latest failures that began alike. A full bank loses the lowest
    .5·ρ + .3·min(1, n/10) + .2·recency for n uses; recency halves every ``capacity`` episodes.

    A procedure ends at a step that is rewarded; what follows the last reward of a failed episode failed. The kind of a
    task is a part of the key of a procedure, and is not read when it is recalled.
    """

    Options: ClassVar[type[ProceduresOptions]] = ProceduresOptions
    entry_class = Procedure
    options: ProceduresOptions

    def fold(self, episode: Episode) -> Self:
        segments = [] if episode.broken else segmented(episode.trajectory)
        if not segments or any(tokens("; ".join(part.steps)) > self.options.max_tokens for part in segments):
            return self
        bank, now = self, self._now
        key = (episode.task.environment, episode.task.kind)
        parts = tuple(entry_id(*key, *part.steps) for part in segments)
        for id, part in zip(parts, segments, strict=True):
            bank = bank._used(episode, now, id, part, worked=part.rewarded or episode.success)
        routine = entry_id(*key, "routine", *parts)
        if len(parts) >= ROUTINE and (episode.success or routine in self.entries):
            whole = Segment(tuple(step for part in segments for step in part.steps), segments[-1].ending, False)
            if tokens("; ".join(whole.steps)) <= self.options.max_tokens:
                bank = bank._used(episode, now, routine, whole, worked=episode.success, parts=parts)
        return bank

    def choose(self, near: Sequence[tuple[float, Procedure]], opening: str) -> Sequence[Procedure]:
        candidates = sorted(near, key=lambda pair: (-pair[0], pair[1].id))[: self.options.candidates]
        named, risks = set(words(opening)), self._risks(opening)
        scored = []
        for cosine, entry in candidates:
            relevance, risk = cosine * _met(entry, named), risks.get(entry.id, 0.0)
            scored.append((expected_utility(relevance, risk, entry, self.options), entry.id))
        best = [id for utility, id in sorted(scored, reverse=True) if utility >= self.options.min_utility]
        return [self.entries[id] for id in reversed(best[: self.options.procedures])]

    def shown(self, entry: Procedure) -> tuple[str, str]:
        return entry.id, shortened(entry.text, self.options.max_tokens)

    def facts(self, entry: Procedure) -> dict[str, Any]:
        return {**super().facts(entry), "steps": list(entry.steps)}

    def value(self, entry: Procedure) -> tuple[float, ...]:
        recency = 0.5 ** ((self._now - entry.latest) / self.options.capacity)
        return (0.5 * entry.rate + 0.3 * min(1.0, (entry.successes + entry.failures) / 10) + 0.2 * recency,)

    def crowded(self, entries: Sequence[Procedure]) -> Sequence[Procedure]:
        routines = [entry for entry in entries if entry.parts]
        if len(routines) > self.options.routines:
            return routines
        return super().crowded([entry for entry in entries if not entry.parts])

    def _used(
        self, episode: Episode, now: int, id: str, part: Segment, worked: bool, parts: tuple[str, ...] = ()
    ) -> Self:
        """The bank after one more use of a procedure."""
        fields = source(episode)
        known = self.entries.get(id) or Procedure(id=id, **fields, steps=part.steps, parts=parts, latest=now)
        case = Context(fields["opening"][:MAX_CONTEXT_CHARS], encodable(part.ending[:MAX_CONTEXT_CHARS]))
        return self.having(
            of_several(
                known,
                episode,
                latest=now,
                successes=known.successes + worked,
                failures=known.failures + (not worked),
                worked=(*known.worked, case)[-REFINED:] if worked else known.worked,
                failed=known.failed if worked else (*known.failed, case)[-REFINED:],
            )
        )

    def _risks(self, opening: str) -> dict[str, float]:
        """The share of each procedure's failures whose openings resemble this one, by id."""
        ids, index = self._failures
        alike: defaultdict[str, list[bool]] = defaultdict(list)
        for id, similarity in zip(ids, index.similarities(opening), strict=True):
            alike[id].append(similarity >= RESEMBLES)
        return {id: sum(cases) / len(cases) for id, cases in alike.items()}

    @cached_property
    def _failures(self) -> tuple[list[str], TfIdf]:
        """The openings of all failures that are kept, with the ids of their procedures."""
        cases = [(id, case.opening) for id in sorted(self.entries) for case in self.entries[id].failed]
        return [id for id, _ in cases], TfIdf([opening for _, opening in cases])

    @cached_property
    def _now(self) -> int:
        """The number of the next episode."""
        return 1 + max((entry.latest for entry in self.entries.values()), default=-1)


class Segment(NamedTuple):
    """A part of an episode: its steps, its last observation, and whether it ended at a reward."""

    steps: tuple[str, ...]
    ending: str
    rewarded: bool


def expected_utility(relevance: float, risk: float, entry: Procedure, options: ProceduresOptions) -> float:
    """EU of a procedure (see :class:`ProcedureBank`)."""
    alpha, beta = 1 + entry.successes, 1 + entry.failures
    variance = alpha * beta / ((alpha + beta) ** 2 * (alpha + beta + 1))
    return relevance * entry.rate - risk * (1 - entry.rate) * options.cost + options.exploration * 12 * variance


def segmented(trajectory: Trajectory) -> list[Segment]:
    """The parts of a trajectory, in generalised steps; of equal steps within a part the last one stays."""
    found: list[Segment] = []
    steps: dict[str, None] = {}
    last = len(trajectory.steps) - 1
    for number, step in enumerate(trajectory.steps):
        action = generalised(step.action)
        steps.pop(action, None)
        if action:
            steps[action] = None
        if steps and (step.reward > 0 or number == last):
            found.append(Segment(tuple(steps), step.observation, step.reward > 0))
            steps = {}
    return found


def generalised(action: str) -> str:
    """An action without what is of one task: ``take mug 1`` → ``take <mug>``, ``Search[Paris]`` → ``Search[…]``."""
    action = encodable(" ".join(action.split()))
    name, bracket, argument = action.partition("[")
    return f"{name}[…]" if bracket and argument.endswith("]") else _NUMBERED.sub(r"<\1>", action)


def _met(entry: Procedure, named: set[str]) -> float:
    """The share of a procedure's preconditions that a text with these words names."""
    return len(entry.preconditions & named) / len(entry.preconditions) if entry.preconditions else 1.0
