"""The adapters and the reward model that the finished stages of a run have made."""

from __future__ import annotations

from pathlib import Path

from retro.config import RunConfig
from retro.layout import RunFolder
from retro.retrospective.adapter_files import search
from retro.retrospective.reward_files import RewardFiles
from retro.stage import read_manifest


def stage_adapter(config: RunConfig, name: str) -> Path | None:
    """The adapter that a finished stage of this run made, or None."""
    folder = config.run_dir / name
    return search(folder) if _finished(folder) else None


def reward_model(config: RunConfig) -> RewardFiles | None:
    """The reward model of this run's finished reward stage, or None."""
    folder = RunFolder(config.run_dir).reward
    found = RewardFiles.of_stage(folder)
    return found if _finished(folder) and found.exist else None


def _finished(folder: Path) -> bool:
    return (read_manifest(folder) or {}).get("status") == "complete"
