"""How much faster than the naive way: collection, a PPO step, several answers to a prompt. Ratios taken in one run.

    python benchmarks/pipeline.py --json FILE [--repeats 3] [--quick] [key.sub=value …]

Each line does the same work twice, in turn: the way this project does it, and the way one would write it first with
transformers alone (one episode at a time by ``generate``; three whole models, each response behind a copy of its
prompt). What both computed is compared; the command exits with 1 if it differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.pipeline_collection import measure_collection
from benchmarks.pipeline_ppo import measure_ppo
from benchmarks.pipeline_sampling import measure_sampling
from benchmarks.pipeline_timing import report
from retro.artifacts import git_revision, versions
from retro.buffer.views import Context
from retro.cli.errors import one_line_errors
from retro.config import ConfigError, RunConfig, load_config
from retro.envs import make_taskset
from retro.models.loading import load_tokenizer
from retro.training.examples import encoder_of_run
from retro.types import Split

FIXED = ("device=cpu", "actor.kind=local", "ppo.reward={kind: model, score: sigmoid}")
QUICK_EPISODES, QUICK_CONTEXTS = 16, 4
"""Of the table at least, in characters."""


def measure(config: RunConfig, episodes: int, repeats: int) -> dict[str, Any]:
    """All lines, checks and counts, as plain JSON.

    Raises:
        ConfigError: if too few of the episodes fail to make a PPO step's contexts.
    """
    started, load = perf_counter(), os.getloadavg()
    tasks = make_taskset(config.environment.name, config.environment.options).tasks(Split.TRAIN, episodes)
    collected, same_actions, played = measure_collection(config, tasks, repeats)
    contexts = [Context(episode, ()) for episode in played if episode.failed][: config.ppo.contexts]
    if len(contexts) < config.ppo.contexts:
        raise ConfigError(
            f"{len(contexts)} of {episodes} episodes failed, and a PPO step takes ppo.contexts={config.ppo.contexts}: "
            "raise --episodes or lower ppo.contexts"
        )
    learnt, same_losses, counted = measure_ppo(config, contexts, repeats)
    encoder = encoder_of_run(load_tokenizer(config.model), config)
    prompts = [encoder.prompt(context.episode) for context in contexts]
    sampled, same_answers = measure_sampling(config, prompts, repeats)
    return {
        "lines": [line.to_json() for line in (*collected, *learnt, *sampled)],
        "counted": counted,
        "checks": [check.to_json() for check in (*same_actions, *same_losses, *same_answers)],
        "sizes": {
            "episodes": episodes,
            "mean_steps": sum(len(episode.trajectory.steps) for episode in played) / episodes,
            "contexts": len(contexts),
            "responses_a_context": config.ppo.group,
            "mean_prompt_tokens": sum(map(len, prompts)) / len(prompts),
            "token_budget": config.ppo.token_budget,
        },
        "repeats": repeats,
        "seed": config.seed,
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(perf_counter() - started, 1),
        "config": config.model_dump(mode="json"),
    }


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "processor": _processor(),
        "cpu_count": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": platform.platform(),
        "versions": versions(),
        "git": git_revision(),
        "device": "cpu",
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not on Linux
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def table(result: dict[str, Any]) -> Table:
    """The lines and counts for people to read."""
    drawn = Table(title=f"medians of {result['repeats']} repeats, {result['machine']['threads']} thread(s)")
    for name in ("", "naive", "retro", "ratio", "of single repeats", "by CPU seconds"):
        drawn.add_column(name, justify="left" if not name else "right")
    for line in result["lines"]:
        low, high = line["ratio_of_repeats"]
        drawn.add_row(
            f"{line['name']} ({line['unit']})",
            f"{line['naive']:,.1f}",
            f"{line['ours']:,.1f}",
            f"{line['ratio']:.2f}",
            f"{low:.2f} – {high:.2f}",
            f"{line['ratio_by_cpu_seconds']:.2f}",
        )
    drawn.add_section()
    words = {"parameter_bytes": "parameters held (bytes)", "forward_tokens": "tokens of one forward pass"}
    for name, word in words.items():
        counts = result["counted"][name]
        drawn.add_row(word, f"{counts['naive']:,}", f"{counts['ours']:,}", f"{counts['ratio']:.2f}", "counted", "")
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--repeats", type=int, default=3, help="measured passes of each side, after a warm-up")
    parser.add_argument("--episodes", type=int, default=256, help="episodes collected")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it runs, measures nothing")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value")
    given = parser.parse_args(arguments)
    if given.repeats < 1 or given.episodes < 1:
        parser.error("--repeats and --episodes must be 1 or more")
    quick = [f"ppo.contexts={QUICK_CONTEXTS}"] if given.quick else []
    config = load_config(given.config, [*FIXED, *quick, *given.overrides])
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    result = measure(config, QUICK_EPISODES if given.quick else given.episodes, given.repeats)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {"command": shlex.join(["python", "benchmarks/pipeline.py", *written]), "quick": given.quick, **result}
    return report(result, table(result), given.json)


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
