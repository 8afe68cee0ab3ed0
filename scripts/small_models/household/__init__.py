"""The quickstart's two models: what they are trained on, step by step."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from retro.prompts import load_prompts
from retro.types import Trajectory, derive_seed
from scripts.small_models.household import reflections
from scripts.small_models.household.samples import Play, plays
from scripts.small_models.household.tokenizer import build_tokenizer
from scripts.small_models.train import Example, Role, Shape, actor_ids, build_model

PROMPTS = load_prompts("household")
FOLDER = Path("data/quickstart")
SHAPE = Shape(hidden=128, inner=256, layers=4, heads=4, kv_heads=4, positions=512, rope_theta=1000.0)
ROLES = {"actor": Role(SHAPE, seed=7, steps=2000), "retrospective": Role(SHAPE, seed=11, steps=1500)}
PLAYS_A_STEP = 96


def build(
    role: str, steps: int, folder: Path, games: str
) -> tuple[PreTrainedTokenizerFast, LlamaForCausalLM, Callable[[int], list[Example]]]:
    """The tokenizer, the untrained model, and the batch of each step."""
    tokenizer = build_tokenizer()
    seed = ROLES[role].seed

    def samples(step: int) -> list[Example]:
        drawn = draw_plays(seed, role, step, steps)
        if role == "actor":
            return [actor_example(attempt, tokenizer) for attempt in drawn]
        failed = [attempt for attempt in drawn if not attempt.success]
        return [retrospective_example(a, tokenizer, (seed, "reflect", step, i)) for i, a in enumerate(failed)]

    return tokenizer, build_model(tokenizer, SHAPE, seed), samples


def worlds_at(step: int, steps: int) -> tuple[int, int]:
    """The curriculum: small rooms first, all sizes later, the household's own size most of the time."""
    done = step / steps
    if done < 0.15:
        return 4, 6
    if done < 0.3:
        return 4, 9
    return (11, 11) if step % 2 else (6, 12)


def draw_plays(seed: int, role: str, step: int, steps: int) -> list[Play]:
    smallest, largest = worlds_at(step, steps)
    drawn: list[Play] = []
    index = 0
    while len(drawn) < PLAYS_A_STEP:
        drawn.extend(plays((seed, role, step, index), smallest, largest))
        index += 1
    return drawn


def actor_example(attempt: Play, tokenizer: PreTrainedTokenizerFast) -> Example:
    return actor_ids(tokenizer, PROMPTS.actor(attempt.opening, attempt.steps, attempt.notes))


def retrospective_example(
    attempt: Play, tokenizer: PreTrainedTokenizerFast, key: tuple[str | int, ...], count: int = 6
) -> Example:
    """Several reflections on one failed trajectory, behind one prompt."""
    prompt = PROMPTS.reflection(Trajectory(attempt.opening, attempt.steps), attempt.return_, False, attempt.notes)
    ids = [tokenizer.bos_token_id, *tokenizer.encode(prompt)]
    rng = random.Random(derive_seed(*key))
    texts = [reflections.write(attempt.world, attempt.steps, attempt.notes, rng) for _ in range(count)]
    branches = [[*tokenizer.encode(text), tokenizer.eos_token_id] for text in texts]
    return Example(ids, [False] * len(ids), branches)
