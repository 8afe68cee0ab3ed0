"""An actor of one's own: a rule that plays the guessing game, in the place of a language model.

    actor:
      kind: examples.extensions.rule_actor:RuleActor
      temperature: 1.0          # and all other keys that every actor has
      options: {obeys: true}

An actor answers a prompt and knows nothing else: what it has seen stands in the prompt. So a rule, a program or a
remote service can act as well as a model can. A rule costs nothing, obeys what it is told, and shows whether an
environment and its prompts work before a model plays.
"""

from __future__ import annotations

import random
import re
from pathlib import Path

from retro.config import Section
from retro.types import Completion, Prompt, Sampling


class RuleOptions(Section):
    obeys: bool = True
    """Whether it first guesses the number that the latest entry of its memory names."""


class RuleActor:
    """Guesses a number that the answers so far allow: the middle one at temperature 0, a random one otherwise."""

    Options = RuleOptions

    def __init__(self, obeys: bool) -> None:
        self.obeys = obeys

    @classmethod
    def from_options(cls, options: RuleOptions, device: object = None, ledger: Path | None = None) -> RuleActor:
        """A model would compute on ``device``; a service would write what it has cost into ``ledger``."""
        return cls(options.obeys)

    async def complete(self, prompt: Prompt, sampling: Sampling) -> Completion:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        before, _, play = text.rpartition("Guess a number from")  # behind the example and the memory
        low, high = 1, 100
        for guess, answer in re.findall(r"^Action \d+: (\d+)\nObservation \d+: (Higher|Lower)", play, re.MULTILINE):
            low, high = (int(guess) + 1, high) if answer == "Higher" else (low, int(guess) - 1)
        guess = (low + high) // 2
        if sampling.temperature:
            guess = random.Random(sampling.seed).randint(low, high)  # the call's own seed: a resumed run draws the same
        entries = re.findall(r"^- (.*)", before, re.MULTILINE)
        advice = re.search(r"\d+", entries[-1]) if entries and self.obeys else None
        if advice and low <= int(advice[0]) <= high:
            guess = int(advice[0])
        return Completion(f"It is between {low} and {high}.\nAction: {guess}", "stop")
