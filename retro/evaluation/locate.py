"""Where adapters lie: in a run, a stage, a checkpoint, or a plain PEFT folder."""

from __future__ import annotations

from pathlib import Path

from retro.config import ConfigError, RunConfig
from retro.layout import CHECKPOINT, RunFolder
from retro.models.adapter_config import ADAPTER_CONFIG
from retro.retrospective.reward_files import RewardFiles
from retro.stage import MANIFEST, read_manifest

ADAPTER_STAGES = ("sft", "reward", "ppo")
_INSIDE = ("adapter", "policy", "best/adapter", "best/policy", "best", "export/adapter", "ppo", "sft")
"""Where a run's, a stage's or a checkpoint's adapter is looked for, the most telling place first."""


def find_adapter(path: Path) -> Path:
    """The PEFT adapter folder that ``path`` (run, stage, checkpoint or adapter) means.

    Of a run: its export, else its ppo, else its sft stage. Of a stage: the checkpoint that it chose.

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
    """What training an adapter's folder belongs to, and the training step where it is one of its checkpoints.

    ``runs/mine`` → ``mine``; ``runs/mine/sft`` → ``mine/sft``; ``runs/mine/ppo/checkpoint-10`` → ``mine/ppo``, 10.
    """
    parts = [part for part in path.resolve().parts if part not in ("adapter", "export", "best")]
    step = parts[-1].removeprefix(CHECKPOINT)
    if step != parts[-1] and step.isdigit():
        return "/".join(parts[-3:-1]), int(step)
    return "/".join(parts[-2:]) if parts[-1] in ADAPTER_STAGES else parts[-1], None


def stage_adapter(config: RunConfig, name: str) -> Path | None:
    """The adapter that a finished stage of this run made, or None."""
    folder = config.run_dir / name
    manifest = read_manifest(folder)
    return _search(folder) if manifest is not None and manifest.get("status") == "complete" else None


def reward_model(config: RunConfig) -> RewardFiles | None:
    """The reward model of this run's finished reward stage, or None."""
    folder = RunFolder(config.run_dir).reward
    found = RewardFiles.of_stage(folder)
    manifest = read_manifest(folder)
    finished = manifest is not None and manifest.get("status") == "complete"
    return found if finished and found.exist else None


def _search(path: Path) -> Path | None:
    if (path / ADAPTER_CONFIG).is_file():
        return path
    if (path / MANIFEST).is_file():
        outputs = (read_manifest(path) or {}).get("outputs", {})
        for name in ("adapter", "policy", "best"):
            if name in outputs and (inside := _search((path / outputs[name]["path"]).resolve())):
                return inside
    for name in _INSIDE:
        if (path / name).is_dir() and (inside := _search(path / name)):
            return inside
    return None
