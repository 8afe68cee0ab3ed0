"""Rebuild the small models that the repository ships: frozen actors, and bases for the retrospective model.

    python scripts/build_small_models.py household actor
    python scripts/build_small_models.py household retrospective
    python scripts/build_small_models.py alfworld actor          # then actor-b and retrospective

The household's take about half an hour each on one core, ALFWorld's some hours: first a demonstrator plays the games of
the training rooms. Started again after an interruption, the script goes on where it was.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts.small_models import alfworld, household
from scripts.small_models.train import train

WORLDS = {"household": household, "alfworld": alfworld}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("world", choices=list(WORLDS))
    parser.add_argument("role", help=f"{', '.join(household.ROLES)}; {', '.join(alfworld.ROLES)}")
    parser.add_argument("--steps", type=int, help="by default as the shipped models")
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--init", type=Path, help="a trained model of the same shape to go on from")
    parser.add_argument("--work", type=Path, default=Path("runs/build"), help="where the training state is kept")
    parser.add_argument("--out", type=Path, help="by default where the shipped models are")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--games", default="data/alfworld/json_2.1.1/train", help="alfworld: the folder or Parquet file of its games"
    )
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    world = WORLDS[arguments.world]
    if arguments.role not in world.ROLES:
        parser.error(f"{arguments.world} has no role {arguments.role!r}; there are: {', '.join(world.ROLES)}")
    role = world.ROLES[arguments.role]
    steps = arguments.steps or role.steps
    folder = arguments.work / arguments.world
    tokenizer, model, samples = world.build(arguments.role, steps, folder, arguments.games)
    if arguments.init:
        trained = AutoModelForCausalLM.from_pretrained(arguments.init, dtype=torch.float32)
        model.load_state_dict(trained.state_dict())
    train(model, samples, folder / arguments.role, steps, arguments.lr, read_weight=role.read_weight)
    out = (arguments.out or world.FOLDER) / arguments.role
    model.to(torch.float16).save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
