"""Training samples for ALFWorld's small models: plays of the demonstrator, worded and numbered anew at every use."""

from __future__ import annotations

import random
import re
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from retro.prompts import PromptSet
from retro.types import Step, Trajectory
from scripts.small_models.alfworld import reflections
from scripts.small_models.alfworld.language import Advice, Phrasing
from scripts.small_models.alfworld.plays import Play
from scripts.small_models.alfworld.tokenizer import HIGHEST
from scripts.small_models.train import Example, actor_ids

_NAME = re.compile(r"\b([a-z]+) (\d+)\b")


class Renumbering:
    """Gives the things and places of one play other numbers, in the same order: ``drawer 3`` may become ``drawer 17``.

    Numbers carry no meaning in these games, and some are rare. With half of the plays renumbered, a model learns each
    number as well as any other, and no room by heart.
    """

    def __init__(self, play: Play, rng: random.Random) -> None:
        found: dict[str, set[int]] = {}
        texts = [play.opening, *(text for step in play.steps for text in (step.action, step.observation))]
        texts += [name for note in play.notes for advice in note for name in (*advice.names, advice.thing)]
        for kind, number in _NAME.findall(" \n ".join(texts)):
            if kind in HIGHEST:
                found.setdefault(kind, set()).add(int(number))
        self._numbers: dict[tuple[str, str], str] = {}
        for kind, numbers in found.items():
            drawn = sorted(rng.sample(range(1, HIGHEST[kind] + 1), len(numbers)))
            self._numbers.update(((kind, str(old)), str(new)) for old, new in zip(sorted(numbers), drawn, strict=True))

    def text(self, text: str) -> str:
        return _NAME.sub(lambda found: f"{found[1]} {self._numbers.get((found[1], found[2]), found[2])}", text)

    def play(self, play: Play) -> Play:
        return replace(
            play,
            opening=self.text(play.opening),
            notes=tuple(tuple(self.advice(advice) for advice in note) for note in play.notes),
            steps=tuple(Step(self.text(step.action), self.text(step.observation), step.reward) for step in play.steps),
        )

    def advice(self, advice: Advice) -> Advice:
        return replace(advice, names=tuple(map(self.text, advice.names)), thing=self.text(advice.thing))


def actor_example(
    play: Play,
    tokenizer: PreTrainedTokenizerFast,
    prompts: PromptSet,
    phrasing: Phrasing,
    rng: random.Random,
    most_steps: int,
) -> Example:
    """Every action is learnt, with the line's end; nothing else is. A longer play is cut after ``most_steps``."""
    if rng.random() < 0.5:
        play = Renumbering(play, rng).play(play)
    notes = [phrasing.note(note, rng) for note in play.notes]
    return actor_ids(tokenizer, prompts.actor(play.opening, play.steps[:most_steps], notes))


def retrospective_example(
    play: Play,
    tokenizer: PreTrainedTokenizerFast,
    prompts: PromptSet,
    phrasing: Phrasing,
    rng: random.Random,
    count: int = 6,
) -> Example:
    """Several reflections on one failed play, behind one prompt."""
    if rng.random() < 0.5:
        play = Renumbering(play, rng).play(play)
    notes = [phrasing.note(note, rng) for note in play.notes]
    prompt = prompts.reflection(Trajectory(play.opening, play.steps), play.return_, False, notes)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
    found = reflections.find(play.opening, play.steps, play.notes)
    texts = [phrasing.note(reflections.write(found, rng), rng) for _ in range(count)]
    branches = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    return Example(ids, [False] * len(ids), branches)
