"""Does the retrospective model learn? Several training seeds, every method, tasks nobody has seen, in the household.

    nohup python benchmarks/learning.py > learning.log &        # everything, two worker processes; resumes when killed
    python benchmarks/learning.py --summarise                   # table, plot and claims of the seeds that are done

Written to ``runs/learning``: ``rates.json`` (the rivals' learning rates on validation tasks), ``results.json``,
``results.md``, ``results.png``, and ``results.outcomes.jsonl``, a line for each arm, seed and task.
"""

from __future__ import annotations

import sys

from benchmarks.training_report import BEST_ARM, Claim
from benchmarks.training_runs import World, main
from retro.cli.errors import one_line_errors

CLAIMS = (
    Claim("reflexion", "retry-sampled"),
    Claim("sft", "reflexion"),
    Claim("ppo-env", "sft"),
    Claim("ppo-env", "sft-matched"),
    Claim("ppo-env", "shuffled"),
    Claim("ppo-env-bon8", "ppo-env", above=-0.01),
    Claim("ppo-rm", "sft", above=-0.01),
    Claim(BEST_ARM, "reflexion", difference_at_least=0.10),
)
WORLD = World(
    config="configs/quickstart.yaml",
    runs="runs/learning",
    seeds=(101, 102, 103, 104, 105),
    tuning_seed=100,
    tasks=500,
    offset=60_000,
    claims=CLAIMS,
    matched=("environment.tasks.train=4000",),
)

if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main(WORLD, __doc__))
