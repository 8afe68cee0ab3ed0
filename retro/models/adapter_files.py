"""An adapter's folder: PEFT's own files, and beside them the base that it was trained on."""

from __future__ import annotations

import json
from pathlib import Path

from peft import LoraConfig, PeftConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from retro.artifacts import write_json

WEIGHTS = "adapter_model.safetensors"
IDENTITY = "base.json"
"""Beside PEFT's own files: which base the adapter was trained on. PEFT and vLLM do not read it."""


class AdapterError(ValueError):
    """A folder that holds no adapter we can use; the message names it and the remedy."""


class AdapterMismatchError(AdapterError):
    """An adapter and a base that do not belong together; the message names both."""


def write_identity(path: Path, identity: str) -> None:
    """Say in an adapter's folder which base it was trained on (see :func:`retro.models.loading.base_identity`)."""
    write_json(path / IDENTITY, {"identity": identity})


def read_identity(path: Path) -> str | None:
    """The base that an adapter was trained on, if its folder says so."""
    file = path / IDENTITY
    return str(json.loads(file.read_text(encoding="utf-8"))["identity"]) if file.is_file() else None


def read_adapter(path: Path) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Configuration and weights.

    Raises:
        AdapterError: if the folder holds no causal-LM LoRA in safetensors.
    """
    if not (path / "adapter_config.json").is_file():
        raise AdapterError(f"{path}: no PEFT adapter (adapter_config.json is missing)")
    if not (path / WEIGHTS).is_file():
        raise AdapterError(
            f"{path}: {WEIGHTS} is missing; adapters are read from safetensors alone, never from pickles"
        )
    try:
        config = PeftConfig.from_pretrained(str(path))
        weights = load_file(path / WEIGHTS)
    except (ValueError, TypeError, KeyError, OSError, SafetensorError) as error:
        raise AdapterError(f"{path}: the adapter cannot be read: {error}") from error
    if not isinstance(config, LoraConfig):
        raise AdapterError(f"{path}: a {config.peft_type} adapter; only LoRA adapters are read")
    if config.task_type != "CAUSAL_LM":
        raise AdapterError(
            f"{path}: an adapter for the task {config.task_type}, not CAUSAL_LM: on a causal LM its score head would "
            "be dropped in silence. Save the adapter as CAUSAL_LM and the head as head.safetensors (retro.models.heads)"
        )
    return config, weights
