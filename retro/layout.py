"""The paths in a run folder and the cache folder. A path that several parts of the package read is spelt here only."""

from __future__ import annotations

import os
from pathlib import Path

ADAPTER = "adapter"
ADAPTER_CONFIG = "adapter_config.json"
"""What every PEFT adapter has, also one that is not ours."""
BEST = "best"
CHECKPOINT = "checkpoint-"
"""The prefix of a checkpoint's folder, before its step."""
CACHE = "RETRO_CACHE"
"""The environment variable that names another cache folder than ``~/.cache/retro``."""


class RunFolder:
    """The paths in ``runs/NAME``, whether or not anything is there yet."""

    def __init__(self, path: Path) -> None:
        self.config = path / "config.yaml"
        """The resolved config, which runs again as it is."""
        self.buffer = path / "buffer.sqlite"
        """The replay buffer of a run whose config names no other database."""
        self.lease = path / "lease.json"
        """Which process works on the run; it exists while one does."""
        self.actor_usage = path / "actor_usage.jsonl"
        """What an actor behind an API has cost: JSON lines that add up."""
        self.metrics = path / "metrics.jsonl"
        """A JSON line for each logged step, of all stages."""
        self.progress = path / "progress.html"
        """The page about a run that has not been evaluated yet."""
        self.replaced = path / "replaced"
        """The former folders of stages that ran anew."""
        self.trackers = path / "trackers"
        self.online_bank = path / "collect" / "bank"
        """The bank of a collection whose memory learns between its rounds, after the last of them."""
        self.curator = path / "curator"
        """What the language model that curates a bank has answered, and what it has cost."""
        self.memory = path / "memory"
        """The bank of a memory that learns across tasks."""
        self.sft_adapter = path / "sft" / ADAPTER
        self.reward = path / "reward"
        """The reward stage's folder: ``adapter/``, the head, ``reward.json``."""
        self.policy = path / "ppo"
        """The policy stage's folder: ``best/``, ``checkpoint-*/``, ``rollouts/``."""
        self.export = path / "export"
        self.evaluation = path / "evaluation"


def cache_folder() -> Path:
    """The folder of results that can be computed again, shared by all runs."""
    named = os.environ.get(CACHE)
    return Path(named) if named else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "retro"
