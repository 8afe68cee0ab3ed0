"""An adapter's folder: PEFT's own files, and beside them the base that it was trained on."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from pydantic import BaseModel, ValidationError
from torch import Tensor

from retro.artifacts import write_json
from retro.models.adapter_config import ADAPTER_CONFIG, AdapterConfig
from retro.models.tensors import read_tensors
from retro.reading import UnreadableError, Word, problems, read_json

WEIGHTS = "adapter_model.safetensors"
IDENTITY = "base.json"
"""Beside PEFT's own files: which base the adapter was trained on. PEFT and vLLM do not read it."""


class AdapterError(ValueError):
    """A folder that holds no adapter we can use; the message names it and the remedy."""


class AdapterMismatchError(AdapterError):
    """An adapter and a base that do not belong together; the message names both."""


class _Identity(BaseModel):
    """``base.json``."""

    identity: Word


def write_identity(path: Path, identity: str) -> None:
    """Say in an adapter's folder which base it was trained on (see :func:`retro.models.loading.base_identity`)."""
    write_json(path / IDENTITY, {"identity": identity})


def read_identity(path: Path) -> str | None:
    """The base that an adapter was trained on, if its folder says so.

    Raises:
        AdapterError: if the file that says so is damaged.
    """
    file = path / IDENTITY
    if not file.is_file():
        return None
    try:
        return _Identity.model_validate(read_json(file)).identity
    except ValidationError as error:
        raise AdapterError(f"{file}: {problems(error)}") from None
    except UnreadableError as error:
        raise AdapterError(str(error)) from None


def read_adapter(path: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Configuration and weights. Nothing else in the folder is read.

    Raises:
        AdapterError: if the folder holds no causal-LM LoRA in safetensors, or one that is damaged.
    """
    if not (path / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"{path}: no PEFT adapter ({ADAPTER_CONFIG} is missing)")
    if not (path / WEIGHTS).is_file():
        raise AdapterError(
            f"{path}: {WEIGHTS} is missing; adapters are read from safetensors alone, never from pickles"
        )
    try:
        config, weights = AdapterConfig.read(path), read_tensors(path / WEIGHTS)
    except UnreadableError as error:
        raise AdapterError(f"the adapter cannot be read: {error}") from None
    try:
        return config.for_peft(weights), weights
    except ValueError as error:
        raise AdapterError(f"{path / ADAPTER_CONFIG}: {error}") from None
