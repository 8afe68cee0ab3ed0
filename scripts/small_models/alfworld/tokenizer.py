"""The word-level tokenizer of ALFWorld's small models.

``cabinet 12``, ``go to`` and the engine's phrases (``You arrive at``) are one token each. Lossless on actions and
reflections; the rest of a prompt is only read, and there a word that is not known is ``<unk>``.
"""

from __future__ import annotations

import re

from transformers import PreTrainedTokenizerFast

from retro.envs.alfworld.play import ACTIONS
from scripts.small_models.alfworld.language import every_word
from scripts.small_models.tokenizer import word_level_tokenizer

PLACES = {
    **{"drawer": 30, "cabinet": 30, "shelf": 16, "stoveburner": 6, "sidetable": 6, "countertop": 5},
    **{"handtowelholder": 4, "armchair": 4, "diningtable": 4, "bed": 3, "desk": 3, "dresser": 3, "sofa": 3},
    **{"coffeetable": 3, "tvstand": 3, "sinkbasin": 3, "towelholder": 3, "garbagecan": 2, "safe": 2},
    **{"laundryhamper": 2, "ottoman": 2, "coffeemachine": 2, "fridge": 2, "microwave": 2, "toaster": 2},
    **{"bathtubbasin": 2, "toiletpaperhanger": 2, "toilet": 2, "cart": 2},
}
"""ALFWorld's kinds of places, and the highest number that the tokenizer has for each."""
_THINGS = """
alarmclock apple baseballbat basketball blinds book boots bowl box bread butterknife candle cd cellphone chair cloth
creditcard cup curtains desklamp dishsponge egg faucet floorlamp footstool fork glassbottle handtowel houseplant
kettle keychain knife ladle lamp laptop lettuce lightswitch mirror mug newspaper painting pan papertowelroll pen pencil
peppershaker pillow plate plunger poster pot potato remotecontrol saltshaker scrubbrush showerdoor soapbar soapbottle
spatula spoon spraybottle statue stoveknob teddybear television tennisracket tissuebox toiletpaper tomato towel vase
watch wateringcan window winebottle
"""
THINGS = {thing: 5 for thing in _THINGS.split()} | {"statue": 8, "vase": 8, "window": 8, "chair": 8, "stoveknob": 8}
HIGHEST = PLACES | THINGS

_PHRASES = (
    "go to",
    "You arrive at",
    "You open the",
    "You close the",
    "You pick up the",
    "You move the",
    "from the",
    "to the",
    "is closed.",
    "is open.",
    "In it",
    ". In it",
    ". On the",
    ". The",
    ", you see nothing.",
    ", you see a",
    ", and a",
    ", a",
    "You are in the middle of a room. Looking quickly around you",
    "You are facing the",
    "Next to it",
    "Your task is to:",
    "You are not carrying anything.",
    "You are carrying: a",
    "Nothing happens.",
    f"is not possible here and now. Actions are: {ACTIONS}.",
    "is not possible here and now.",
    "You turn on the",
    "You clean the",
    "You heat the",
    "You cool the",
    "using the",
    "and put it",
    "and put them",
    "failed, score",
    "reflection:",
    "note:",
)
_SYMBOLS = [">", ":", ".", ",", ";", "\n", "[", "]", "/", "0.00", "0.25", "0.33", "0.50", "0.67", "0.75", "1.00"]
_WORDS = """
put some in on a two find them clean hot cool heat look at under the examine with take open close move use inventory
there was no action actions are this is it what and or to from place thing lamp you see nothing of not normally on off
"""


def build_tokenizer() -> PreTrainedTokenizerFast:
    names = [f"{kind} {number}" for kind, most in HIGHEST.items() for number in range(1, most + 1)]
    words = dict.fromkeys([*_WORDS.split(), *HIGHEST, *every_word().split(), "PLACE", "THING", "LAMP", "Actions"])
    phrases = "|".join(re.escape(phrase) for phrase in sorted(_PHRASES, key=len, reverse=True))
    kinds = "|".join(sorted(HIGHEST, key=len, reverse=True))
    pattern = rf"(?:{phrases})(?![A-Za-z])|(?:{kinds}) \d+(?!\d)|\d\.\d\d|[A-Za-z]+|\n|\S"
    return word_level_tokenizer([*_SYMBOLS, *_PHRASES, *words, *names], pattern)
