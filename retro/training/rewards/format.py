"""``format``: a shaping term for the form of a reflection, whatever it says (TGRL, arXiv 2510.11184)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config import RewardTermSection
from retro.training.rewards.base import Reward

if TYPE_CHECKING:
    from retro.training.policy.groups import Group, Response

WORDS_IN_PHRASE = 4
"""Repetition is counted in phrases of so many words: seq-rep-4 of Welleck et al. 2020 (arXiv 1908.04319)."""
REPETITIVE = 1 / 3
"""A text repeats itself if at least this share of its phrases occurred before in it: two equal sentences of seven words
do, and names that occur often do not."""
_NUMBER = re.compile(r"^([^\W\d]+) *\d+ *:")


class FormatOptions(RewardTermSection):
    """The form of a reflection, from 2 (without a fault) to −2 (empty): each fault costs 1. The faults are: the
    reflection was cut at ``max_new_tokens``, it repeats itself, it continues the prompt."""

    kind: Literal["format"] = "format"
    markers: list[str] = ["thought:", "action:", "observation:", "reflection:", "note:", ">"]
    """How lines of the prompts begin, in small letters and without a step's number. A reflection with such a line
    continues the prompt. The default fits the prompts that come with retro."""


class FormatReward(Reward):
    """Ranges from −2 to 2, as TGRL's term does. The paper's faults are those of an XML template; ours are those of free
    text, which reflections are."""

    Options = FormatOptions

    async def score(self, groups: Sequence[Group]) -> list[list[float]]:
        return [[self._of(response) for response in group.responses] for group in groups]

    def _of(self, response: Response) -> float:
        if not response.text.strip():
            return -2.0
        faults = (
            response.finish_reason == "length",
            repeated_phrases(response.text) >= REPETITIVE,
            continues_prompt(response.text, self.options.markers),
        )
        return 2.0 - sum(faults)


def repeated_phrases(text: str) -> float:
    """The share of phrases (of :data:`WORDS_IN_PHRASE` words) that occurred before in ``text``, from 0 to 1."""
    words = text.lower().split()
    phrases = [tuple(words[start : start + WORDS_IN_PHRASE]) for start in range(len(words) - WORDS_IN_PHRASE + 1)]
    return 1 - len(set(phrases)) / len(phrases) if phrases else 0.0


def continues_prompt(text: str, markers: Sequence[str]) -> bool:
    """Whether a line begins as lines of the prompt do: ``Action 3: go to desk 1`` has the marker ``action:``."""
    lines = (_NUMBER.sub(r"\1:", line.strip().lower()) for line in text.splitlines())
    return any(line.startswith(tuple(markers)) for line in lines)
