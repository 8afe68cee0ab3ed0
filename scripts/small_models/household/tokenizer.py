"""The word-level tokenizer of the quickstart's two models: ``cabinet 2`` and ``go to`` are one token each; lossless on
the household's text."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from retro.envs.household import LAMP, OBJECTS, PLACES, TOOLS
from scripts.small_models.tokenizer import word_level_tokenizer

_WORDS = (
    "places task put in and look at under clean heat cool it open close take from with use inventory you see "
    "nothing is closed are there happens the room hold broken note try remember to i went be more careful "
    "again do not waste steps think before act search all failed score reflection go "
)
_SYMBOLS = [">", ":", ".", ",", "\n", "go to", "0.00", "0.25", "0.33", "0.50", "0.67", "0.75", "1.00"]
_PATTERN = r"go to|[a-z]+ \d+(?!\.\d)|\d\.\d\d|[a-z]+|\n|\S"


def build_tokenizer() -> PreTrainedTokenizerFast:
    names = [f"{kind} {i + 1}" for kind, count in PLACES.items() for i in range(count)]
    names += [f"{tool} {i}" for tool in TOOLS.values() for i in (1, 2)]
    names += [f"{thing} {i}" for thing in OBJECTS for i in (1, 2)] + [LAMP]
    return word_level_tokenizer([*_SYMBOLS, *_WORDS.split(), *names], _PATTERN)
