"""Where adapters lie: in a run, a stage, a checkpoint, or a plain PEFT folder."""

from __future__ import annotations

from pathlib import Path

from retro.config import ConfigError, RunConfig
from retro.layout import ADAPTER, BEST, CHECKPOINT, RunFolder
from retro.models.adapter_config import ADAPTER_CONFIG
from retro.retrospective.reward_files import RewardFiles
from retro.stage import read_manifest

_INSIDE = (ADAPTER, BEST, "export", "ppo", "sft")
"""The folders in which an adapter is looked for; the first one that holds an adapter is taken."""


def find_adapter(path: Path) -> Path:
    """The PEFT adapter folder that ``path`` (a run, a stage, a checkpoint or an adapter) stands for.

    A run stands for its export, otherwise for its ppo stage, otherwise for its sft stage. A stage stands for the
    checkpoint that it chose.

    Raises:
        ConfigError: if there is none.
    """
    if not path.is_dir():
        raise ConfigError(f"checkpoint {path}: no such folder")
    found = _search(path)
    if found is None:
        raise ConfigError(
            f"checkpoint {path}: no PEFT adapter ({ADAPTER_CONFIG}) there; name a run, a stage, a checkpoint or an "
            "adapter"
        )
    return found


def checkpoint_of(path: Path) -> tuple[str, int | None]:
    """What training an adapter's folder belongs to, and its training step if it is a checkpoint.

    ``runs/mine`` → ``mine``; ``runs/mine/sft`` → ``mine/sft``; ``runs/mine/ppo/checkpoint-10`` → ``mine/ppo``, 10.
    """
    *above, last = [part for part in path.resolve().parts if part not in (ADAPTER, BEST, "export")]
    step = last.removeprefix(CHECKPOINT)
    if step != last and step.isdigit():
        return "/".join(above[-2:]), int(step)
    return "/".join([*above[-1:], last]) if last in ("sft", "reward", "ppo") else last, None


def stage_adapter(config: RunConfig, name: str) -> Path | None:
    """The adapter that a finished stage of this run made, or None."""
    folder = config.run_dir / name
    return _search(folder) if _finished(folder) else None


def reward_model(config: RunConfig) -> RewardFiles | None:
    """The reward model of this run's finished reward stage, or None."""
    folder = RunFolder(config.run_dir).reward
    found = RewardFiles.of_stage(folder)
    return found if _finished(folder) and found.exist else None


def _finished(folder: Path) -> bool:
    return (read_manifest(folder) or {}).get("status") == "complete"


def _search(path: Path) -> Path | None:
    if (path / ADAPTER_CONFIG).is_file():
        return path
    inside = (_search(path / name) for name in _INSIDE if (path / name).is_dir())
    return next((found for found in inside if found), None)
