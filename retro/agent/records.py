"""``retro.json``: what an export says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from retro.config import MemorySection, ModelSection

EXPORT = "retro.json"


class ExportError(ValueError):
    """A folder that is no export of ours and no PEFT adapter, or one that is damaged."""


class BaseRecord(BaseModel):
    """The base that an export was trained on."""

    name: str
    revision: str | None = None
    identity: str


class RewardRecord(BaseModel):
    """The reward model's scale, as measured on the train tasks."""

    model_config = ConfigDict(extra="allow")
    mean: float
    std: float
    loss: str


class ExportRecord(BaseModel):
    """``retro.json``: what an export needs beside its weights."""

    format: Literal[1] = 1
    base: BaseRecord
    prompts: str
    """The environment whose prompts were trained on."""
    model: ModelSection
    memory: MemorySection = MemorySection()
    reward: RewardRecord | None = None
    versions: dict[str, Any] = {}

    @classmethod
    def read(cls, folder: Path) -> ExportRecord:
        """Read ``folder/retro.json``.

        Raises:
            ExportError: naming the file, the key and what is wrong with it.
        """
        path = folder / EXPORT
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            problems = (f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors())
            raise ExportError(f"{path}: {'; '.join(problems)}; export the run again") from None
        except (OSError, json.JSONDecodeError) as error:
            raise ExportError(f"{path}: {error}; export the run again") from None
