"""ALFWorld's small models: two actors that share neither a code nor a way of searching, and a retrospective base."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from retro.envs.alfworld import AlfworldTasks
from retro.prompts import load_prompts
from retro.types import Split, derive_seed
from scripts.small_models.alfworld.demonstrator import CHARACTERS
from scripts.small_models.alfworld.language import PHRASINGS
from scripts.small_models.alfworld.plays import VERSION, Play, read_plays, write_plays
from scripts.small_models.alfworld.samples import actor_example, retrospective_example
from scripts.small_models.alfworld.searches import made_up_search
from scripts.small_models.alfworld.tokenizer import build_tokenizer
from scripts.small_models.train import Example, Role, Shape, build_model

ROOMS = {
    "validation": (12, 19, 216, 217, 323, 329, 413, 428),
    "test": (1, 3, 20, 26, 205, 210, 222, 223, 229, 305, 314, 324, 330, 412, 414, 421, 426),
}
"""Rooms (``FloorPlan`` numbers) that no model is made from: kitchens (below 100), living rooms (200 to 299), bedrooms
(300 to 399) and bathrooms (from 400), drawn at random within each kind."""
STEPS = 20
"""The step limit. With ALFWorld's 49, a search sees most of a room at once, and little is left to reflect on."""
FOLDER = Path("data/alfworld-small")
PROMPTS = load_prompts("household")
_LARGE = Shape(hidden=256, inner=768, layers=4, heads=4, kv_heads=1, positions=2048, rope_theta=10_000.0)
_DEEP = Shape(hidden=224, inner=640, layers=5, heads=4, kv_heads=1, positions=2048, rope_theta=10_000.0)
ROLES = {
    "actor": Role(_LARGE, seed=21, steps=2100, read_weight=0.1),
    "actor-b": Role(_DEEP, seed=22, steps=2100, read_weight=0.1),
    "retrospective": Role(_LARGE, seed=23, steps=800, read_weight=0.1),
}
_CHARACTERS = {"actor": "a", "actor-b": "b", "retrospective": "a"}
_PHRASINGS = {"actor": PHRASINGS["a"], "actor-b": PHRASINGS["b"], "retrospective": PHRASINGS["all"]}
CUTS = (8, STEPS)
"""Half of the plays are cut after so many steps: notes are obeyed at the beginning, and the rest is mostly search."""
PLAYS_A_STEP = 12
SEARCHES_A_STEP = 16
"""Of an actor: searches that are made up, beside the plays."""


def build(
    role: str, steps: int, folder: Path, games: str
) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM, Callable[[int], list[Example]]]:
    """The tokenizer, the untrained model, and the batch of each step. The demonstrator plays first, if it has not yet.

    Args:
        games: the folder or Parquet file of the training games.
    """
    character, seed = _CHARACTERS[role], ROLES[role].seed
    plays = demonstrated(character, folder, games)
    if role == "retrospective":
        plays = [play for play in plays if not play.success]
    tokenizer = build_tokenizer()

    def samples(step: int) -> list[Example]:
        rng = random.Random(derive_seed("sample", seed, step))
        drawn = rng.sample(plays, PLAYS_A_STEP)
        if role == "retrospective":
            begun = [play if rng.random() < 0.5 else beginning(play, rng.randint(4, STEPS)) for play in drawn]
            return [retrospective_example(play, tokenizer, PROMPTS, _PHRASINGS[role], rng) for play in begun]
        most = steps_at(step, steps)
        cut = [beginning(play, min(most, rng.choice(CUTS))) for play in drawn]
        searches = [made_up_search(play, CHARACTERS[character], rng) for play in rng.sample(plays, SEARCHES_A_STEP)]
        return [actor_example(play, tokenizer, PROMPTS, _PHRASINGS[role], rng) for play in [*cut, *searches]]

    return tokenizer, build_model(tokenizer, ROLES[role].shape, seed), samples


def beginning(play: Play, steps: int) -> Play:
    """The play as it was after so many steps."""
    kept = play.steps[:steps]
    return replace(play, steps=kept, return_=sum(step.reward for step in kept))


def demonstrated(character: str, folder: Path, games: str) -> list[Play]:
    """The plays of one demonstrator in the training rooms: from ``folder``, or played now where they are missing."""
    file = folder / f"plays-{character}-{VERSION}.jsonl"
    world = AlfworldTasks({"train": games}, graded=True, rooms=ROOMS, steps=STEPS)
    try:
        write_plays(world.tasks(Split.TRAIN, world.count(Split.TRAIN)), world, character, seed=1, file=file)
    finally:
        world.close()
    return read_plays(file)


def steps_at(step: int, steps: int) -> int:
    """The curriculum: the beginnings of plays first."""
    done = step / steps
    return 6 if done < 0.1 else 12 if done < 0.3 else STEPS
