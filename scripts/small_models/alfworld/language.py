"""How notes about an ALFWorld room are worded: one piece of advice, many sentences.

An actor learns some of the sentences and has to understand the others. The two actors learn different ones, so a
retrospective model that is trained with one of them cannot rely on a code that both share.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

TOOLS = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
"""The kind of place where a thing is treated."""
STATES = {"clean": "clean", "heat": "hot", "cool": "cool"}


class Says(StrEnum):
    """What a sentence is about."""

    WHERE = "where"
    """A thing is at a place."""
    EMPTY = "empty"
    """Nothing that helps is at these places."""
    TRY = "try"
    """Look at these places, in this order."""
    TREAT = "treat"
    """Clean, heat or cool it."""
    TOGETHER = "together"
    """Both things belong to one place."""
    PLAN = "plan"
    """Actions, in this order."""
    STORY = "story"
    """What was done; it helps nobody."""
    VAGUE = "vague"


@dataclass(frozen=True)
class Advice:
    """The meaning of one sentence."""

    says: Says
    names: tuple[str, ...] = ()
    """One place (``WHERE``, ``TOGETHER``), places (``EMPTY``, ``TRY``, ``STORY``), a verb, or the actions of a plan."""
    thing: str = ""
    """``WHERE``: what is there."""


SENTENCES: dict[Says, tuple[str, ...]] = {
    Says.WHERE: (
        "{thing} is [in|on|at] {place}.",
        "You will find {thing} [in|on] {place}.",
        "I saw {thing} [in|on|at] {place}[| earlier| last time].",
        "[Take|Get|Grab|Fetch] {thing} from {place}.",
        "[Go|Head|Walk] straight to {place}, because {thing} is there.",
        "{place} [holds|has|contains] {thing}.",
        "Remember that {thing} [was|is] [in|on] {place}.",
        "The [first|right] [place|stop] is {place}, where {thing} [lies|stands|is].",
        "There is {thing} [in|on] {place}.",
        "Start at {place}; {thing} is [there|waiting there].",
        "{thing} can be [found|picked up|taken] at {place}.",
        "Do not search for {thing}: it is [in|on] {place}.",
        "Last time {thing} was [in|on|at] {place}.",
        "For {thing} the answer is {place}.",
        "[Look|Search] [in|on] {place} [first|at once] and take {thing}.",
    ),
    Says.EMPTY: (
        "There is nothing [useful|of use] [in|on] {places}.",
        "{places} [held|had] nothing [useful|that helps].",
        "[Skip|Avoid|Leave out] {places}.",
        "Do not [waste time on|go back to|visit|check] {places}[| again].",
        "I [looked at|searched|checked] {places} and found nothing.",
        "It is not [in|on|at] {places}.",
        "No [luck|need to look] [at|in] {places}.",
        "[Stay|Keep] away from {places}.",
        "{places} can be [ruled out|crossed off|ignored].",
        "What we need was not [in|on|at] {places}.",
        "Forget [|about ]{places}.",
        "We already know that {places} [are empty|do not help].",
        "Nothing [came of|was at|was in] {places}.",
        "Never mind {places}.",
        "It makes no sense to open or visit {places}.",
    ),
    Says.TRY: (
        "[Try|Check] {places}[| next| first].",
        "[Look|Search] [in|at|on] {places}[| next| now].",
        "The next [places|stops] are {places}.",
        "[Go|Head] to {places}[| next].",
        "It [may|might|could] be [in|on|at] {places}.",
        "Not yet seen: {places}.",
        "{places} [have|has] not been [searched|checked|opened] yet.",
        "Next time [begin|start] with {places}.",
        "[Perhaps|Maybe] {places} [will|would] help.",
        "I would [try|look at|visit] {places}.",
        "What is left is {places}.",
        "Continue with {places}.",
        "Give {places} a [try|chance].",
        "My [guess|bet] is {places}.",
        "Visit {places} before anything else.",
    ),
    Says.TREAT: (
        "[Remember|Do not forget] to {verb} it[| first].",
        "You [forgot|did not remember] to {verb} it.",
        "It must be {verb}ed[| before it is put down].",
        "{Verb} it before you [put it down|place it].",
        "It has to be {state}.",
        "The task [wants|needs|asks for] it {state}.",
        "First {verb} it, then [put it down|place it].",
        "Use the {tool} [on it|before placing it].",
        "[Take|Bring|Carry] it to the {tool}[| first].",
        "{Verb} it with the {tool}.",
        "[It failed because|The mistake was that] it was not {verb}ed.",
        "Make sure that it is {state}.",
        "On the way, stop at the {tool} and {verb} it.",
        "Without being {verb}ed it does not count.",
        "It was not {state} when you put it down.",
    ),
    Says.TOGETHER: (
        "Put both [in|on] {place}.",
        "Both [belong|go|must go] [in|on|to] {place}.",
        "Use {place} for both.",
        "The second one [goes|belongs] [in|on] {place}, too.",
        "Keep them together [in|on] {place}.",
        "They must end up [in|on] {place} together.",
        "[Place|Leave] the two of them [in|on] {place}.",
        "Bring both to {place}.",
        "Do not split them up: {place} for both.",
        "{place} is where both must be.",
        "One was not enough: put both [in|on] {place}.",
        "Choose {place} [every time|for each of them].",
        "Each of the two goes [in|on] {place}.",
        "Put the other one [in|on] {place} as well.",
        "Only {place} counts for both.",
    ),
    Says.PLAN: (
        "Do this: {actions}.",
        "The whole plan: {actions}.",
        "[Follow|Carry out] these steps: {actions}.",
        "Step by step: {actions}.",
        "What works is this: {actions}.",
        "Solve it like this: {actions}.",
    ),
    Says.STORY: (
        "I went to {places}.",
        "I opened and closed {places}.",
        "I spent my steps at {places}.",
        "I ran out of steps.",
        "The task was not finished.",
    ),
    Says.VAGUE: (
        "Be more careful.",
        "Try again.",
        "Think before you act.",
        "Do not waste steps.",
        "Search all places.",
        "Read the task again.",
        "Make a better plan.",
        "Work faster.",
        "Do not give up.",
        "Stay focused on the task.",
        "Avoid the same mistakes.",
        "Plan ahead.",
    ),
}
"""``[a|b]`` is one of ``a`` and ``b``."""
ORACLE = "These actions solve the task, in this order: {actions}."
"""How the environment's own oracle words a plan (:func:`retro.envs.alfworld.plan`); every actor knows it."""
_OR = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Phrasing:
    """The sentences that somebody knows: of each kind of advice, those whose number leaves one of ``rests`` when it is
    divided by 3."""

    rests: tuple[int, ...]

    def known(self, says: Says) -> tuple[str, ...]:
        sentences = SENTENCES[says]
        return tuple(text for number, text in enumerate(sentences) if number % 3 in self.rests)

    def word(self, advice: Advice, rng: random.Random) -> str:
        """A sentence that says it."""
        sentence = ORACLE if advice.says is Says.PLAN and rng.random() < 0.4 else rng.choice(self.known(advice.says))
        sentence = _OR.sub(lambda found: rng.choice(found[1].split("|")), sentence)
        verb = advice.names[0] if advice.says is Says.TREAT else ""
        text = sentence.format(
            thing=advice.thing,
            place=advice.names[0] if advice.names else "",
            places=listed(advice.names),
            verb=verb,
            Verb=verb.capitalize(),
            tool=TOOLS.get(verb, ""),
            state=STATES.get(verb, ""),
            actions="; ".join(advice.names),
        )
        return text

    def note(self, said: Sequence[Advice], rng: random.Random) -> str:
        return " ".join(self.word(advice, rng) for advice in said)


PHRASINGS = {"a": Phrasing((1, 2)), "b": Phrasing((0, 2)), "all": Phrasing((0, 1, 2))}
"""What the two actors were trained on, and what the retrospective base model writes."""
UNREAD = {"a": Phrasing((0,)), "b": Phrasing((1,))}
"""What an actor was not trained on."""


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def every_word() -> str:
    """All sentences in all their forms, one after the other: what a vocabulary is made from."""
    texts = [ORACLE, *(sentence for sentences in SENTENCES.values() for sentence in sentences)]
    words = " ".join(re.sub(r"\{\w+\}", " ", text.replace("{verb}ed", " ")) for text in texts)
    forms = [form for verb in TOOLS for form in (verb, verb.capitalize(), f"{verb}ed", TOOLS[verb], STATES[verb])]
    return " ".join([*re.findall(r"[A-Za-z]+", words), *forms])
