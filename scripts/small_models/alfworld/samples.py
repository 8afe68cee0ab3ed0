"""Training samples for ALFWorld's small models: plays of the demonstrator, worded and numbered anew at every use."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from retro.prompts import PromptSet
from retro.types import Step, Trajectory
from scripts.small_models.alfworld import reflections
from scripts.small_models.alfworld.language import STATES, TOOLS, Advice, Phrasing, Says, every_word
from scripts.small_models.alfworld.plays import Play
from scripts.small_models.alfworld.tokenizer import HIGHEST, PLACES, THINGS
from scripts.small_models.alfworld.view import View, kind_of, with_places
from scripts.small_models.train import Example, actor_ids

_NAME = re.compile(r"\b([a-z]+) (\d+)\b")
_KIND = re.compile(rf"\b({'|'.join(HIGHEST)})\b(?: (\d+)\b)?")
_MEANING = {*HIGHEST, *TOOLS, *STATES.values(), *(word for verb in TOOLS for word in (verb.capitalize(), f"{verb}ed"))}
_WORDS = sorted(set(every_word().split()) - _MEANING)
_WORD = re.compile(rf"\b(?!(?:{'|'.join(sorted(_MEANING))})\b)[A-Za-z]+\b")
_KEPT = {*TOOLS.values(), "desklamp", "floorlamp"}
"""Kinds that are not renamed."""


class Renaming:
    """Gives the things and places of one play other names.

    Two ways, each drawn for half of the plays: other numbers in the same order, and other kinds (every ``drawer`` may
    become a ``shelf``, wherever the play or the notes name it). Few rooms are played, and names carry no meaning for
    the way in which the demonstrator searches: renamed, no room can be learnt by heart, and what is left to learn is
    to copy names from the opening and the notes. Tools and lamps, which do have a meaning, keep their kinds.
    """

    def __init__(self, play: Play, rng: random.Random) -> None:
        self._numbers: dict[tuple[str, str], str] = {}
        goal = View.of(play.opening).goal
        found: dict[str, set[int]] = {goal.thing: set(), goal.place: set()}
        for kind, number in _NAME.findall(" \n ".join(_texts(play))):
            if kind in HIGHEST:
                found.setdefault(kind, set()).add(int(number))
        self._kinds = _other_kinds(found, rng) if rng.random() < 0.5 else {}
        every = rng.random() < 0.5
        for kind, numbers in found.items():
            most = HIGHEST[self._kinds.get(kind, kind)]
            if every or max(numbers, default=0) > most:
                drawn = sorted(rng.sample(range(1, most + 1), len(numbers)))
                pairs = zip(sorted(numbers), drawn, strict=True)
                self._numbers.update(((kind, str(old)), str(new)) for old, new in pairs)

    def text(self, text: str) -> str:
        def renamed(found: re.Match[str]) -> str:
            kind, number = found[1], found[2]
            named = self._kinds.get(kind, kind)
            return named if number is None else f"{named} {self._numbers.get((kind, number), number)}"

        return _KIND.sub(renamed, text)

    def play(self, play: Play) -> Play:
        return replace(
            play,
            opening=self.text(play.opening),
            notes=tuple(tuple(self.advice(advice) for advice in note) for note in play.notes),
            steps=tuple(Step(self.text(step.action), self.text(step.observation), step.reward) for step in play.steps),
        )

    def advice(self, advice: Advice) -> Advice:
        return replace(advice, names=tuple(map(self.text, advice.names)), thing=self.text(advice.thing))


def _texts(play: Play) -> list[str]:
    names = [name for note in play.notes for advice in note for name in (*advice.names, advice.thing)]
    return [play.opening, *(text for step in play.steps for text in (step.action, step.observation)), *names]


def _other_kinds(found: Mapping[str, set[int]], rng: random.Random) -> dict[str, str]:
    """A kind for each that may be renamed, with numbers enough; no two get the same."""
    renamed: dict[str, str] = {}
    for kinds in (PLACES, THINGS):
        free = [kind for kind in kinds if kind not in _KEPT]
        rng.shuffle(free)
        for kind in sorted(found.keys() & set(free), key=lambda kind: (-len(found[kind]), kind)):
            fitting = next(other for other in free if HIGHEST[other] >= len(found[kind]))
            renamed[kind] = fitting
            free.remove(fitting)
    return renamed


def smaller_room(play: Play, rng: random.Random) -> Play:
    """The same play in a room without some of the places that neither it nor its notes have to do with."""
    view = View.of(play.opening)
    named = " \n ".join(_texts(replace(play, opening="")))
    kept = {view.goal.place, *TOOLS.values()}
    rate = rng.random()
    places = [
        place
        for place in view.places
        if re.search(rf"\b{place}\b", named) or kind_of(place) in kept or rng.random() >= rate
    ]
    return replace(play, opening=with_places(play.opening, places)) if places else play


def varied(play: Play, rng: random.Random) -> Play:
    """The play in another room, as far as texts can tell."""
    if rng.random() < 0.5:
        play = smaller_room(play, rng)
    return Renaming(play, rng).play(play)


def _worded(advice: Advice, phrasing: Phrasing, rng: random.Random) -> str:
    """A sentence that says it; in half of them some words are exchanged for any others, so that an actor learns to make
    sense of a sentence with words that it does not know."""
    sentence = phrasing.word(advice, rng)
    if advice.says is Says.PLAN or rng.random() < 0.5:
        return sentence
    return _WORD.sub(lambda found: rng.choice(_WORDS) if rng.random() < 0.12 else found[0], sentence)


def actor_example(
    play: Play,
    tokenizer: PreTrainedTokenizerFast,
    prompts: PromptSet,
    phrasing: Phrasing,
    rng: random.Random,
) -> Example:
    """Every action that the demonstrator meant is learnt, with the line's end; nothing else is."""
    play = varied(play, rng)
    notes = [" ".join(_worded(advice, phrasing, rng) for advice in note) for note in play.notes]
    return actor_ids(tokenizer, prompts.actor(play.opening, play.steps, notes), play.slips)


def retrospective_example(
    play: Play,
    tokenizer: PreTrainedTokenizerFast,
    prompts: PromptSet,
    phrasing: Phrasing,
    rng: random.Random,
    count: int = 16,
) -> Example:
    """Several reflections on one failed play, behind one prompt."""
    play = varied(play, rng)
    notes = [phrasing.note(note, rng) for note in play.notes]
    prompt = prompts.reflection(Trajectory(play.opening, play.steps), play.return_, False, notes)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
    found = reflections.find(play.opening, play.steps, play.notes)
    texts = [phrasing.note(reflections.write(found, rng), rng) for _ in range(count)]
    branches = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    return Example(ids, [False] * len(ids), branches)
