"""Where adapters lie: in a run, a stage, a checkpoint, or a plain PEFT folder."""

from __future__ import annotations

from pathlib import Path

from retro.config import ConfigError
from retro.layout import ADAPTER, ADAPTER_CONFIG, BEST, CHECKPOINT

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
    found = search(path)
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


def search(path: Path) -> Path | None:
    """:func:`find_adapter`, or None if there is none."""
    if (path / ADAPTER_CONFIG).is_file():
        return path
    inside = (search(path / name) for name in _INSIDE if (path / name).is_dir())
    return next((found for found in inside if found), None)
