"""The stochastic demonstrator that ALFWorld's small actors are cloned from.

It obeys the notes in its prompt, right or wrong, and the newest first where they differ. Without notes it goes through
the places in the order of the opening, from one that is drawn by a weak prior, which knows nothing of where things
usually lie. It forgets treatments, and puts two things into two places. Now and then its hand slips: it does something
impossible or useless, and goes on as if it had not. An actor learns how it goes on, and not the slip
(:attr:`Demonstrator.slipped`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from scripts.small_models.alfworld.language import TOOLS, Advice, Says
from scripts.small_models.alfworld.tokenizer import PLACES
from scripts.small_models.alfworld.view import View, kind_of

_AGAIN = 0.3
"""How often a slip follows a slip."""


@dataclass(frozen=True)
class Character:
    """How one demonstrator plays when no note tells it otherwise."""

    prior: dict[str, float]
    """How much it likes to look at a kind of place; 1 for those that are not listed."""
    forgets: dict[str, float]
    """How often it leaves a treatment out."""
    splits: float
    """How often it takes the second thing to another place than the first."""
    backwards: bool = False
    """Whether it goes through the places from the last one that the opening lists to the first."""
    slips: float = 0.05
    """How often a step is one that it did not mean."""


CHARACTERS = {
    "a": Character(
        prior={"drawer": 3.0, "cabinet": 2.0, "shelf": 2.0, "garbagecan": 2.0, "countertop": 0.3, "diningtable": 0.3},
        forgets={"clean": 0.5, "heat": 0.5, "cool": 0.7},
        splits=0.6,
    ),
    "b": Character(
        prior={"cabinet": 3.0, "stoveburner": 3.0, "sofa": 2.0, "armchair": 2.0, "sidetable": 0.3, "desk": 0.3},
        forgets={"clean": 0.7, "heat": 0.5, "cool": 0.5},
        splits=0.6,
        backwards=True,
    ),
}


@dataclass
class Told:
    """What the notes say, the newest first."""

    where: list[tuple[str, str]] = field(default_factory=list)
    """Things and their places."""
    empty: set[str] = field(default_factory=set)
    tries: list[str] = field(default_factory=list)
    treats: list[str] = field(default_factory=list)
    together: str = ""
    plan: tuple[str, ...] = ()

    @classmethod
    def by(cls, notes: Sequence[Sequence[Advice]]) -> Told:
        """
        Args:
            notes: The oldest first, as they stand in the prompt.
        """
        told = cls()
        for advice in (advice for note in reversed(notes) for advice in note):
            match advice.says:
                case Says.WHERE:
                    if advice.thing not in dict(told.where):
                        told.where.append((advice.thing, advice.names[0]))
                case Says.EMPTY:
                    told.empty.update(advice.names)
                case Says.TRY:
                    told.tries.extend(name for name in advice.names if name not in told.tries)
                case Says.TREAT:
                    told.treats.extend(verb for verb in advice.names if verb not in told.treats)
                case Says.TOGETHER:
                    told.together = told.together or advice.names[0]
                case Says.PLAN:
                    told.plan = told.plan or advice.names
                case _:
                    pass
        return told


class Demonstrator:
    """Plays one episode: :meth:`act` gives the next action, :meth:`see` takes the answer to it."""

    def __init__(
        self, opening: str, notes: Sequence[Sequence[Advice]], character: Character, rng: random.Random
    ) -> None:
        self.view = View.of(opening)
        self._told = Told.by(notes)
        self._character = character
        self._rng = rng
        self._plan = list(self._told.plan)
        goal = self.view.goal
        own = [goal.verb] if goal.verb and rng.random() >= character.forgets[goal.verb] else []
        self._treats = list(dict.fromkeys([*own, *self._told.treats]))
        self._gave_up: set[str] = set()
        self._beside = ""
        self.slipped = False
        """Whether the last action was a slip."""
        self._targets = self._choose_targets()
        self._action = ""
        self._needed = False
        """Whether the last place was gone to for what is there, and not in a search."""

    def act(self) -> str:
        self.slipped = self._rng.random() < (_AGAIN if self.slipped else self._character.slips)
        self._action = self._slip() if self.slipped else self._next()
        return self._action

    def see(self, observation: str) -> None:
        self.view.see(self._action, observation)
        if self.slipped:
            return
        self._beside = ""
        if not observation.startswith("Nothing happens"):
            return
        self._plan = []
        place = self._action.removeprefix("go to ")
        if place != self._action and place in self.view.places and self._needed:
            self._beside = place  # it stands there already: the place shares its spot with another one
        verb = self._action.split()[0]
        if verb in self._treats:
            self._treats.remove(verb)
        self._gave_up.add(self._action)

    def _slip(self) -> str:
        """Something impossible or useless; it changes nothing."""
        view, rng = self.view, self._rng
        missing = self._missing_place()
        slips = [f"go to {missing}"] * 6 + [f"examine {missing}", "look", "inventory"]
        thing = f"{view.goal.thing} {rng.randint(1, 3)}"
        if view.at and (view.shut or view.where.get(thing) != view.at) and thing != view.holding:
            slips += [f"take {thing} from {view.at}"] * 2
        if thing != view.holding:
            slips.append(f"move {thing} to {view.at or rng.choice(view.places)}")
        return rng.choice(slips)

    def _missing_place(self) -> str:
        """A place that the opening does not list, in most cases of a kind that it lists."""
        kinds = {kind_of(place) for place in self.view.places}
        kind = self._rng.choice(sorted(kinds if self._rng.random() < 0.75 else PLACES))
        names = [f"{kind} {number}" for number in range(1, PLACES[kind] + 1)]
        return self._rng.choice([name for name in names if name not in self.view.places] or [f"{kind} {PLACES[kind]}"])

    def _next(self) -> str:
        self._needed = True
        if self._plan:
            return self._plan.pop(0)
        if self._beside:
            return f"examine {self._beside}"
        view = self.view
        if view.holding:
            return self._bring()
        if len(view.put) < view.goal.count:
            return self._fetch()
        return "look"

    def _fetch(self) -> str:
        view = self.view
        wanted = [thing for thing in view.wanted(view.goal.thing) if self._take(thing) not in self._gave_up]
        for thing in wanted:
            if view.where[thing] == view.at:
                return f"open {view.at}" if view.shut else self._take(thing)
        if wanted:
            return self._go(view.where[wanted[0]])
        return self._search(view.goal.thing)

    def _take(self, thing: str) -> str:
        return f"take {thing} from {self.view.where[thing]}"

    def _bring(self) -> str:
        view = self.view
        if view.goal.kind == "look":
            lamps = view.wanted(view.goal.place)
            if not lamps:
                return self._search(view.goal.place)
            at = view.where[lamps[0]]
            return f"use {lamps[0]}" if at == view.at else self._go(at)
        for verb in self._treats:
            tools = view.of_kind(TOOLS[verb])
            if tools and (verb, view.holding) not in view.treated:
                return f"{verb} {view.holding} with {tools[0]}" if view.at == tools[0] else self._go(tools[0])
        target = self._targets[min(len(view.put), len(self._targets) - 1)]
        if view.at != target:
            return self._go(target)
        if view.shut:
            return f"open {target}"
        action = f"move {view.holding} to {target}"
        return action if action not in self._gave_up else "look"

    def _go(self, place: str) -> str:
        return f"go to {place}"

    def _search(self, kind: str) -> str:
        view, told = self.view, self._told
        self._needed = False
        if view.shut and view.at and view.at not in view.searched:
            return f"open {view.at}"
        left = [place for place in view.places if place not in view.searched and f"go to {place}" not in self._gave_up]
        for thing, place in told.where:
            if kind_of(thing) == kind and place in left:
                return self._go(place)
        for place in told.tries:
            if place in left:
                return self._go(place)
        candidates = [place for place in left if place not in told.empty] or left
        if not candidates:
            return "look"
        return self._go(self._next_place(candidates))

    def _next_place(self, candidates: Sequence[str]) -> str:
        """The first candidate after the place where it stands; at first, the first of a kind that is drawn."""
        order = self.view.places[::-1] if self._character.backwards else self.view.places
        if self.view.at:
            after = order.index(self.view.at) + 1
            return next(place for place in (*order[after:], *order[:after]) if place in candidates)
        ordered = [place for place in order if place in candidates]
        kind = kind_of(self._rng.choices(ordered, [self._character.prior.get(kind_of(one), 1.0) for one in ordered])[0])
        return next(place for place in ordered if kind_of(place) == kind)

    def _choose_targets(self) -> list[str]:
        """Where the first and the second thing go."""
        view = self.view
        if view.goal.kind == "look":
            return []
        fitting = view.of_kind(view.goal.place)
        if self._told.together in view.places:
            return [self._told.together] * 2
        first = self._rng.choice(fitting)
        others = [place for place in fitting if place != first]
        split = bool(others) and self._rng.random() < self._character.splits
        return [first, self._rng.choice(others) if split else first]
