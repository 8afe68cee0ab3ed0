"""``retro.json``: what an export says of itself."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from retro.config import MemorySection, ModelSection

EXPORT = "retro.json"
PROMPTS = "prompts"
ADAPTER = "adapter"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes."""
_VLLM_DEFAULT_RANK = 16


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
    """The environment whose prompts are for trajectories that name none."""
    environments: list[str] = []
    """Those that it was trained on; a folder of prompts each lies in ``prompts/``. Older exports have none."""
    served_name: str = ""
    """What a server should call the adapter: new weights, new name (a server's prefix cache is keyed by it)."""
    chat: bool | None = None
    """Whether the base has a chat template. Older exports do not say; the base's tokenizer does."""
    config_overrides: dict[str, Any] = {}
    """What a server must replace in the base's ``config.json``: the whole of what ``model.rope_scaling`` changes."""
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


def serve_command(
    section: ModelSection, adapter: Path, served_name: str, config_overrides: Mapping[str, Any] | None = None
) -> str:
    """The shell command that serves an adapter as its own model behind an OpenAI-compatible endpoint, with vLLM.

    The base's own ``generation_config.json`` is left out: the model was trained to be sampled without the penalties and
    cut-offs that some bases name there.
    """
    words = ["vllm", "serve", section.base]
    words += ["--revision", section.revision] if section.revision else []
    words += ["--trust-remote-code"] if section.trust_remote_code else []
    words += ["--hf-overrides", json.dumps(config_overrides)] if config_overrides else []
    words += ["--generation-config", "vllm", "--enable-lora"]
    rank = min((size for size in _VLLM_RANKS if size >= section.lora.r), default=section.lora.r)
    words += ["--max-lora-rank", str(rank)] if rank > _VLLM_DEFAULT_RANK else []
    return shlex.join([*words, "--lora-modules", f"{served_name}={adapter}"])


def served_by(export: Path) -> str:
    """:func:`serve_command` of an export folder.

    Raises:
        ExportError: if its ``retro.json`` is damaged.
    """
    record = ExportRecord.read(export)
    return serve_command(record.model, export / ADAPTER, record.served_name or export.name, record.config_overrides)
