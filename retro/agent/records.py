"""``retro.json``, which describes an export."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    PlainValidator,
    ValidationError,
    model_validator,
)

from retro.config import MemorySection, ModelSection, parse_section
from retro.layout import ADAPTER, ADAPTER_CONFIG, RunFolder
from retro.reading import UnreadableError, Word, problems, read_json, word

EXPORT = "retro.json"
PROMPTS = "prompts"
MEMORY = "memory"
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""What ``--max-lora-rank`` takes."""
_VLLM_DEFAULT_RANK = 16


class ExportError(ValueError):
    """A folder that is damaged, or is neither an export of ours nor a PEFT adapter."""


def _environment(value: str) -> str:
    if "/" in value or "\\" in value or not value.strip(".:"):
        raise ValueError("must name an environment, not a path")
    return word(value)


def _file(value: str) -> str:
    if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
        raise ValueError("must be the path of a file in the export")
    return word(value)


def _memory(value: Any) -> Any:
    kind = value.get("kind") if isinstance(value, Mapping) else value
    if isinstance(kind, str) and ":" in kind:
        return {**value} if isinstance(value, Mapping) else {"kind": kind}
    return parse_section(MemorySection, value)


EnvironmentName = Annotated[str, Field(max_length=200), AfterValidator(_environment)]
FileName = Annotated[str, Field(max_length=1000), AfterValidator(_file)]


class FileRecord(BaseModel):
    """What identifies a file of an export."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class BaseRecord(BaseModel):
    """The base that an export was trained on."""

    name: Word
    revision: Word | None = None
    identity: Word


class RewardRecord(BaseModel):
    """The reward model's scale, as measured on the train tasks."""

    model_config = ConfigDict(extra="allow")
    mean: FiniteFloat
    std: Annotated[FiniteFloat, Field(gt=0)]
    loss: Literal["bradley_terry", "bce"]


class ExportRecord(BaseModel):
    """``retro.json``: what an export needs beside its weights."""

    format: Literal[1] = 1
    base: BaseRecord
    prompts: EnvironmentName
    """The environment whose prompts are for trajectories that name none."""
    environments: list[EnvironmentName] = []
    """Those that it was trained on; ``prompts/`` has a folder for each of them. Older exports have none."""
    served_name: Word = ""
    """What a server should call the adapter. New weights need a new name: it is the key of a server's prefix cache."""
    chat: bool | None = None
    """Whether the base has a chat template. Older exports do not say; the base's tokenizer does."""
    config_overrides: dict[str, Any] = {}
    """What a server must replace in the base's ``config.json``: everything that ``model.rope_scaling`` changes."""
    model: ModelSection
    memory: Annotated[Any, PlainValidator(_memory)] = Field(default={}, validate_default=True)
    """The ``MemorySection`` of its actor's memory. A kind of somebody's own stays plain JSON, so that reading an export
    does not import the code that it names."""
    reward: RewardRecord | None = None
    files: dict[FileName, FileRecord] | None = None
    """All files of the adapters, the head and the prompts. Older exports have none."""
    versions: dict[str, Any] = {}

    @model_validator(mode="after")
    def _named(self) -> ExportRecord:
        for name in (self.model.base, self.model.revision or ""):
            word(name)
        if strange := self.config_overrides.keys() - {"rope_parameters"}:
            raise ValueError(f"config_overrides: {', '.join(sorted(strange))}: only rope_parameters are overridden")
        return self

    @classmethod
    def read(cls, folder: Path) -> ExportRecord:
        """Read ``folder/retro.json``. Raises ExportError, naming the file, the key and what is wrong with it."""
        path = folder / EXPORT
        try:
            return cls.model_validate(read_json(path))
        except ValidationError as error:
            raise ExportError(f"{path}: {problems(error)}; export the run again") from None
        except (OSError, UnreadableError) as error:
            raise ExportError(f"{error}; export the run again") from None


def check_export(folder: Path) -> None:
    """Refuse a folder that cannot be loaded, without loading anything.

    Raises:
        ExportError: if it does not exist, or is neither an export nor a PEFT adapter; for a run folder it says where
            the export is, or how to write it.
    """
    if (folder / EXPORT).is_file() or (folder / ADAPTER_CONFIG).is_file():
        return
    if not folder.exists():
        raise ExportError(f"{folder} does not exist")
    run = RunFolder(folder)
    if run.export.is_dir():
        raise ExportError(f"{folder} is a run: its export is {run.export}")
    if run.config.is_file() and run.metrics.is_file():
        command = shlex.join(["retro", "run", str(run.config), "--until", "export"])
        raise ExportError(f"{folder} is a run without an export: {command}")
    raise ExportError(f"{folder}: neither an export (no {EXPORT}) nor a PEFT adapter (no {ADAPTER_CONFIG})")


def serve_command(
    section: ModelSection, adapter: Path, served_name: str, config_overrides: Mapping[str, Any] | None = None
) -> str:
    """The shell command that serves an adapter as its own model behind an OpenAI-compatible endpoint, with vLLM.

    The base's own ``generation_config.json`` is ignored: some bases name penalties and cut-offs there, and the model
    was trained to be sampled without them.
    """
    words = ["vllm", "serve", section.base]
    words += ["--revision", section.revision] if section.revision else []
    words += ["--trust-remote-code"] if section.trust_remote_code else []
    words += ["--hf-overrides", json.dumps(config_overrides)] if config_overrides else []
    words += ["--generation-config", "vllm", "--enable-lora"]
    rank = min((size for size in _VLLM_RANKS if size >= section.lora.r), default=section.lora.r)
    words += ["--max-lora-rank", str(rank)] if rank > _VLLM_DEFAULT_RANK else []
    return shlex.join([*words, "--lora-modules", f"{served_name}={adapter}"])


def served_by(export: Path, trust_remote_code: bool = False) -> str:
    """:func:`serve_command` of an export folder; the user alone can decide that the base may run code of its own.

    Raises:
        ExportError: if its ``retro.json`` is damaged.
    """
    record = ExportRecord.read(export)
    section = record.model.model_copy(update={"trust_remote_code": trust_remote_code})
    return serve_command(section, export / ADAPTER, record.served_name or export.name, record.config_overrides)
