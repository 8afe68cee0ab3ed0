"""An adapter's folder: PEFT's own files, and the identity of the base that it was trained on."""

from __future__ import annotations

from pathlib import Path

from peft import LoraConfig
from pydantic import BaseModel, ValidationError
from torch import Tensor

from retro.artifacts import write_json
from retro.layout import ADAPTER_CONFIG
from retro.models.adapter_config import AdapterConfig
from retro.models.tensors import read_tensors
from retro.reading import UnreadableError, Word, problems, read_json

WEIGHTS = "adapter_model.safetensors"
IDENTITY = "base.json"
"""The identity of the base that the adapter was trained on. PEFT and vLLM do not read this file."""


class AdapterError(ValueError):
    """A folder without a usable adapter; the message names it and the remedy."""


class AdapterMismatchError(AdapterError):
    """An adapter that does not belong to a base; the message names both."""


class _Identity(BaseModel):
    """``base.json``."""

    identity: Word


def write_identity(path: Path, identity: str) -> None:
    """Write the identity of an adapter's base (:func:`retro.models.loading.base_identity`) to its folder."""
    write_json(path / IDENTITY, {"identity": identity})


def read_identity(path: Path) -> str | None:
    """The identity of an adapter's base; None if its folder does not name it.

    Raises:
        AdapterError: if the file is damaged.
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
    """The configuration and the weights. Nothing else in the folder is read.

    Raises:
        AdapterError: if the folder does not hold a causal-LM LoRA in safetensors, or the adapter is damaged.
    """
    if not (path / ADAPTER_CONFIG).is_file():
        raise AdapterError(f"{path}: not a PEFT adapter ({ADAPTER_CONFIG} is missing)")
    if not (path / WEIGHTS).is_file():
        raise AdapterError(f"{path}: {WEIGHTS} is missing; adapters are read only from safetensors, never from pickles")
    try:
        config, weights = AdapterConfig.read(path), read_tensors(path / WEIGHTS)
    except UnreadableError as error:
        raise AdapterError(f"the adapter cannot be read: {error}") from None
    try:
        return config.for_peft(weights), weights
    except ValueError as error:
        raise AdapterError(f"{path / ADAPTER_CONFIG}: {error}") from None
