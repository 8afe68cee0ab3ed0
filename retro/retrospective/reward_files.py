"""The files of a reward model, in the folder of its stage or in an export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from retro.artifacts import digest_path
from retro.layout import ADAPTER

_HEAD = "head.safetensors"


@dataclass(frozen=True, slots=True)
class RewardFiles:
    """The paths of a reward model's files."""

    adapter: Path
    """A plain PEFT folder."""
    head: Path
    """The scalar head, which does not belong to the PEFT format."""

    @classmethod
    def of_stage(cls, folder: Path) -> Self:
        """The files in the folder of the stage ``reward``, where the adapter has its own folder."""
        return cls(folder / ADAPTER, folder / _HEAD)

    @classmethod
    def of_export(cls, folder: Path) -> Self:
        """The files in an export, where the head lies beside the adapter's files."""
        return cls(folder, folder / _HEAD)

    @property
    def digest(self) -> str:
        """Names the weights."""
        return f"{digest_path(self.adapter)} {digest_path(self.head)}"

    @property
    def exist(self) -> bool:
        return self.adapter.is_dir() and self.head.is_file()


def facts_file(folder: Path) -> Path:
    """The measurements of the stage ``reward``: losses, accuracies, and the scale of the scores."""
    return folder / "reward.json"
