"""Rebuild the quickstart's two small models: the frozen actor and the retrospective base model.

    python scripts/build_quickstart_models.py actor
    python scripts/build_quickstart_models.py retrospective

Each takes about half an hour on one core; started again after an interruption, it goes on where it was.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from retro.prompts import load_prompts
from retro.types import Trajectory, derive_seed
from scripts.quickstart_models import reflections
from scripts.quickstart_models.samples import Play, plays
from scripts.quickstart_models.tokenizer import build_tokenizer
from scripts.quickstart_models.train import Example, build_model, train

PROMPTS = load_prompts("household")
TOKENIZER = build_tokenizer()
PLAYS_A_STEP = 96
SEEDS = {"actor": 7, "retrospective": 11}
STEPS = {"actor": 2000, "retrospective": 1500}


def worlds_at(step: int, steps: int) -> tuple[int, int]:
    """The curriculum: small rooms first, all sizes later, the household's own size most of the time."""
    done = step / steps
    if done < 0.15:
        return 4, 6
    if done < 0.3:
        return 4, 9
    return (11, 11) if step % 2 else (6, 12)


def draw_plays(role: str, step: int, steps: int) -> list[Play]:
    smallest, largest = worlds_at(step, steps)
    drawn: list[Play] = []
    index = 0
    while len(drawn) < PLAYS_A_STEP:
        drawn.extend(plays((SEEDS[role], role, step, index), smallest, largest))
        index += 1
    return drawn


def actor_example(attempt: Play) -> Example:
    """Every action is learnt, with the line's end; nothing else is."""
    ids = [TOKENIZER.bos_token_id, *TOKENIZER.encode(PROMPTS.actor(attempt.opening, attempt.steps, attempt.notes))][:-1]
    ask, end = TOKENIZER.convert_tokens_to_ids([">", "\n"])
    learnt: list[bool] = []
    acting = False
    for token in ids:
        learnt.append(acting)
        if token == ask:
            acting = True
        elif token == end:
            acting = False
    return Example(ids, learnt, [])


def retrospective_example(attempt: Play, key: tuple[str | int, ...], count: int = 6) -> Example:
    """Several reflections on one failed trajectory, behind one prompt."""
    prompt = PROMPTS.reflection(Trajectory(attempt.opening, attempt.steps), attempt.return_, False, attempt.notes)
    ids = [TOKENIZER.bos_token_id, *TOKENIZER.encode(prompt)]
    rng = random.Random(derive_seed(*key))
    texts = [reflections.write(attempt.world, attempt.steps, attempt.notes, rng) for _ in range(count)]
    branches = [[*TOKENIZER.encode(text), TOKENIZER.eos_token_id] for text in texts]
    return Example(ids, [False] * len(ids), branches)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("role", choices=list(SEEDS))
    parser.add_argument("--steps", type=int, help="by default as the shipped models: 2000 and 1500")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--work", type=Path, default=Path("runs/build"), help="where the training state is kept")
    parser.add_argument("--out", type=Path, default=Path("data/quickstart"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    role = arguments.role
    steps = arguments.steps or STEPS[role]

    def samples(step: int) -> list[Example]:
        drawn = draw_plays(role, step, steps)
        if role == "actor":
            return [actor_example(attempt) for attempt in drawn]
        failed = [attempt for attempt in drawn if not attempt.success]
        return [retrospective_example(a, (SEEDS[role], "reflect", step, i)) for i, a in enumerate(failed)]

    model = build_model(TOKENIZER, SEEDS[role])
    train(model, samples, arguments.work / role, steps, arguments.lr)
    out = arguments.out / role
    model.to(torch.float16).save_pretrained(out)
    TOKENIZER.save_pretrained(out)


if __name__ == "__main__":
    main()
