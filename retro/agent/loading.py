"""From an export on disk to what reflects: base, adapters, reward head, prompts, memory."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from retro.agent.best_of_n import Scorer
from retro.agent.records import EXPORT, ExportError, ExportRecord
from retro.agent.reflector import LocalReflector, LocalScorer
from retro.config import ConfigError, ModelSection
from retro.memory import Memory, make_memory
from retro.models.adapters import AdapterMismatchError, SharedBase
from retro.models.heads import load_head
from retro.models.loading import base_identity, resolve_device, same_base
from retro.prompts import PromptSet, load_prompts
from retro.types import Reflector

ADAPTER = "adapter"
REWARD = "reward"
HEAD = "head.safetensors"
_PEFT_CONFIG = "adapter_config.json"


@dataclass(frozen=True, slots=True)
class LoadedExport:
    """The parts of a retrospective model."""

    reflector: Reflector
    scorer: Scorer | None
    prompts: PromptSet
    memory: Memory | None


def load_export(path: Path, base: str | None, device: str, prompts: str | PromptSet | None) -> LoadedExport:
    """See :meth:`retro.agent.model.RetrospectiveModel.load`."""
    if (path / EXPORT).is_file():
        return _load_record(path, ExportRecord.read(path), base, device, prompts)
    if (path / _PEFT_CONFIG).is_file():
        return _load_adapter(path, base, device, prompts)
    raise ExportError(f"{path}: neither an export (no {EXPORT}) nor a PEFT adapter (no {_PEFT_CONFIG})")


def _load_record(
    path: Path, record: ExportRecord, base: str | None, device: str, prompts: str | PromptSet | None
) -> LoadedExport:
    section = _on_base(record.model, base)
    read = _prompts(prompts or record.prompts, path)
    try:
        shared = SharedBase.load(section, resolve_device(device))
    except ConfigError as error:
        raise ExportError(f"{path} lives on the base {section.base}: {error}; give base, where it lies here") from None
    identity = base_identity(section.base, section.revision)
    if not same_base(identity, record.base.identity):
        raise AdapterMismatchError(
            f"{path} was trained on the base {record.base.identity}, not on {identity}: give its own base"
        )
    shared.load_role("policy", path / ADAPTER, trainable=False)
    scorer = None
    if record.reward is not None:
        shared.load_role("reward", path / REWARD, trainable=False)
        head = load_head(path / REWARD / HEAD).to(shared.device)
        scorer = LocalScorer(shared, "reward", head, read, section)
    reflector = LocalReflector(shared, "policy", read, section, source=path.name)
    return LoadedExport(reflector, scorer, read, make_memory(record.memory))


def _load_adapter(path: Path, base: str | None, device: str, prompts: str | PromptSet | None) -> LoadedExport:
    if prompts is None:
        raise ExportError(f"{path} is a plain adapter and names no prompts: give prompts, for example 'household'")
    config = json.loads((path / _PEFT_CONFIG).read_text(encoding="utf-8"))
    name = base or config.get("base_model_name_or_path")
    if not name:
        raise ExportError(f"{path / _PEFT_CONFIG} names no base model: give base")
    section = ModelSection(base=name)
    read = _prompts(prompts, path)
    shared = SharedBase.load(section, resolve_device(device))
    shared.load_role("policy", path, trainable=False)
    return LoadedExport(LocalReflector(shared, "policy", read, section, source=path.name), None, read, None)


def _on_base(section: ModelSection, base: str | None) -> ModelSection:
    return section if base is None else section.model_copy(update={"base": base, "revision": None})


def _prompts(prompts: str | PromptSet, path: Path) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    try:
        return load_prompts(prompts)
    except ConfigError as error:
        raise ExportError(f"{path}: {error}; give a PromptSet") from None
