"""Where things are in a run folder. Every path that more than one part of the package reads is spelt here alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

ADAPTER = "adapter"
BEST = "best"
CHECKPOINT = "checkpoint-"
"""A checkpoint's folder is called by this and its step."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """``runs/NAME`` and what lies in it; nothing needs to be there yet."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config, which runs again as it is."""
        return self.path / "config.yaml"

    @property
    def buffer(self) -> Path:
        """The replay buffer of a run whose config names no other database."""
        return self.path / "buffer.sqlite"

    @property
    def actor_usage(self) -> Path:
        """What an actor behind an API has cost: JSON lines that add up."""
        return self.path / "actor_usage.jsonl"

    @property
    def metrics(self) -> Path:
        """A JSON line for each logged step, of all stages."""
        return self.path / "metrics.jsonl"

    @property
    def replaced(self) -> Path:
        """The former folders of stages that ran anew."""
        return self.path / "replaced"

    @property
    def trackers(self) -> Path:
        return self.path / "trackers"

    @property
    def memory(self) -> Path:
        """The bank of a memory that learns across tasks."""
        return self.path / "memory"

    @property
    def sft_adapter(self) -> Path:
        return self.path / "sft" / ADAPTER

    @property
    def reward(self) -> Path:
        """The reward stage's folder: ``adapter/``, the head, ``reward.json``."""
        return self.path / "reward"

    @property
    def policy(self) -> Path:
        """The folder of the policy stage: ``best/``, ``checkpoint-*/``, ``rollouts/``."""
        return self.path / "ppo"

    @property
    def export(self) -> Path:
        return self.path / "export"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation"
