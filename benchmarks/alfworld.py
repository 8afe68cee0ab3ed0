"""Does the retrospective model learn on ALFWorld's real games, in rooms nobody has seen, and for an unseen actor?

    alfworld-download --data-dir data/alfworld
    nohup python benchmarks/alfworld.py > alfworld.log &        # everything, two worker processes; resumes when killed
    python benchmarks/alfworld.py --summarise                   # tables, plots and claims of the seeds that are done

Every method is trained with actor A in the training rooms and plays all games of the test rooms. ``results`` are those
with actor A, ``actor-b`` those of the same adapters with actor B, which training never met, and ``known-rooms`` those
with actor A on the 103 games of ``valid_seen`` that are in training rooms. Written to ``runs/alfworld-benchmark``, as
``learning.py`` does.
"""

from __future__ import annotations

import json
import sys

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where ``alfworld`` is not the package

from benchmarks.training_report import BEST_ARM, Claim
from benchmarks.training_runs import World, main
from retro.cli.errors import one_line_errors
from scripts.small_models.alfworld import ROOMS

KNOWN = sorted({kind + room for kind in (0, 200, 300, 400) for room in range(1, 31)} - set().union(*ROOMS.values()))
"""The ``FloorPlan`` numbers of the training rooms."""
CLAIMS = (
    Claim(BEST_ARM, "retry-sampled", difference_at_least=0.25),
    Claim(BEST_ARM, "reflexion", difference_at_least=0.10),
    Claim("ppo-env", "sft"),
    Claim("ppo-env", "sft-matched"),
    Claim("ppo-env", "shuffled"),
)
UNSEEN_ACTOR = (Claim(BEST_ARM, "retry-sampled", difference_at_least=0.15),)
WORLD = World(
    config="configs/alfworld-small.yaml",
    runs="runs/alfworld-benchmark",
    seeds=(101, 102, 103),
    tuning_seed=100,
    tasks=563,
    offset=0,
    claims=CLAIMS,
    elsewhere={
        "actor-b": ("actor.model=data/alfworld-small/actor-b",),
        "known-rooms": (
            "environment.tasks.test=103",
            "environment.options.data.test=data/alfworld/json_2.1.1/valid_seen",
            f"environment.options.rooms={json.dumps({'validation': ROOMS['validation'], 'test': KNOWN})}",
        ),
    },
    claims_elsewhere={"actor-b": UNSEEN_ACTOR},
    matched=("environment.tasks.train=2000",),
)

if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(WORLD, __doc__))
