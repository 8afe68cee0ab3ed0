"""Where adapters lie: in a run, a stage, a checkpoint, or a plain PEFT folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from retro.artifacts import digest_path
from retro.config import ConfigError, RunConfig
from retro.stage import MANIFEST, read_manifest, stage_folder

_ADAPTER = "adapter_config.json"
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
            f"checkpoint {path}: no PEFT adapter ({_ADAPTER}) there; name a run, a stage, a checkpoint or an adapter"
        )
    return found


def stage_adapter(config: RunConfig, name: str) -> Path | None:
    """The adapter that a finished stage of this run made, or None."""
    folder = stage_folder(config, name)
    manifest = read_manifest(folder)
    return _search(folder) if manifest is not None and manifest.get("status") == "complete" else None


@dataclass(frozen=True, slots=True)
class RewardModel:
    """Where a reward model lies: its adapter and its scalar head."""

    adapter: Path
    head: Path

    @property
    def digest(self) -> str:
        return f"{digest_path(self.adapter)} {digest_path(self.head)}"


def reward_model(config: RunConfig) -> RewardModel | None:
    """The reward model of this run's finished reward stage, or None."""
    folder = stage_folder(config, "reward")
    found = RewardModel(folder / "adapter", folder / "head.safetensors")
    manifest = read_manifest(folder)
    finished = manifest is not None and manifest.get("status") == "complete"
    return found if finished and found.adapter.is_dir() and found.head.is_file() else None


def _search(path: Path) -> Path | None:
    if (path / _ADAPTER).is_file():
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
