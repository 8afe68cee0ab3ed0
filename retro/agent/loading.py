"""Loads an export: its base, adapters, reward head, prompts and memory."""

from __future__ import annotations

import logging
import shlex
from pathlib import Path
from typing import NamedTuple

from retro.agent.integrity import check_files
from retro.agent.records import EXPORT, MEMORY, PROMPTS, ExportError, ExportRecord, serve_command, served_by
from retro.config import ConfigError, LoraSection, MemorySection, ModelSection, parse_section
from retro.layout import ADAPTER, ADAPTER_CONFIG
from retro.memory import Memory
from retro.memory.bank import learns, make_memory
from retro.models.adapter_config import AdapterConfig
from retro.models.adapter_files import AdapterMismatchError
from retro.models.adapters import SharedBase
from retro.models.limits import with_prompt_limit
from retro.models.loading import (
    base_identity,
    check_tokens,
    in_hub_cache,
    load_tokenizer,
    local_context,
    resolve_device,
    same_base,
)
from retro.models.rounds import run_sync
from retro.prompts import PromptLibrary, Prompts, PromptSet, load_prompts
from retro.retrospective.encoding import Encoder
from retro.retrospective.policy import Policy
from retro.retrospective.reward_files import RewardFiles
from retro.retrospective.reward_model import RewardModel, RewardScorer
from retro.retrospective.samplers.base import Scorer
from retro.retrospective.served import ServedPolicy, request_section, served_client
from retro.types import Reflector

logger = logging.getLogger(__name__)

REWARD = "reward"


class LoadedExport(NamedTuple):
    """The parts of a :class:`~retro.agent.model.RetrospectiveModel`."""

    reflector: Reflector
    prompts: Prompts
    scorer: Scorer | None
    memory: Memory | None


def load_export(
    path: Path,
    base: str | None,
    device: str,
    prompts: str | PromptSet | None,
    server: str | None = None,
    server_model: str | None = None,
    scores: bool = True,
    trust_remote_code: bool = False,
) -> LoadedExport:
    """See :meth:`retro.agent.model.RetrospectiveModel.load`."""
    record = ExportRecord.read(path) if (path / EXPORT).is_file() else None
    scored = scores and record is not None and record.reward is not None
    if record is not None:
        parts = {ADAPTER: server is None, REWARD: scored, PROMPTS: not prompts, MEMORY: True}
        check_files(path, record.files, [part for part, loaded in parts.items() if loaded])
    read: Prompts
    if prompts:
        read = _prompts(prompts, path)
    elif record is not None:
        read = recorded_prompts(path, record)
    else:
        raise ExportError(f"{path} is a plain adapter and names no prompts: give prompts, for example 'household'")
    section = _section(path, record, base, trust_remote_code)
    shared: SharedBase | None = None
    reflector: Reflector
    if server is None:
        shared = _base(path, record, section, device, "give base, where it lies here")
        shared.load_role("policy", path if record is None else path / ADAPTER, trainable=False)
        reflector = Policy.on(shared, "policy", read, section, source=path.name)
    else:
        reflector = _served(path, record, section, read, server, server_model)
        if scored:
            remedy = "give base, where it lies here, or scores=False (--no-scores): the reward model lives on it too"
            shared = _base(path, record, section, device, remedy)
    scorer = _scorer(path, shared, read, section) if shared is not None and scored else None
    memory = None if record is None else _memory(path, record, trust_remote_code)
    return LoadedExport(reflector, read, scorer, memory)


def _section(path: Path, record: ExportRecord | None, base: str | None, trust_remote_code: bool) -> ModelSection:
    """How the model is loaded and sampled, on the base that the user names or else on the one that the folder names."""
    if record is None:
        config = AdapterConfig.read(path)
        name = base or config.base_model_name_or_path
        if not name:
            raise ExportError(f"{path / ADAPTER_CONFIG} names no base model: give base")
        section = ModelSection(base=name, lora=LoraSection(r=config.r))
    else:
        section = record.model if base is None else record.model.model_copy(update={"base": base, "revision": None})
    if section.trust_remote_code and not trust_remote_code:
        raise ExportError(
            f"{path}: its base {section.base} needs code of its own, which would run with your rights. Only you can "
            f"allow that: retro reflect {shlex.quote(str(path))} --trust-remote-code (Python: trust_remote_code=True)"
        )
    section = section.model_copy(update={"trust_remote_code": trust_remote_code})
    if base is None:
        _log_base(section, path, path / (ADAPTER_CONFIG if record is None else EXPORT))
    return section if record is None else _within_base(path, section)


def _base(path: Path, record: ExportRecord | None, section: ModelSection, device: str, remedy: str) -> SharedBase:
    """The base that the adapter was trained on; ``remedy`` is what the user can do if it is not here."""
    try:
        shared = SharedBase.load(section, resolve_device(device))
        check_tokens(shared.model, shared.tokenizer)
    except ConfigError as error:
        raise ExportError(f"{path} lives on the base {section.base}: {error}; {remedy}") from None
    if record is not None:
        identity = base_identity(section.base, section.revision, section.trust_remote_code)
        if not same_base(identity, record.base.identity):
            raise AdapterMismatchError(
                f"{path} was trained on the base {record.base.identity}, not on {identity}: give its own base"
            )
    return shared


def _within_base(path: Path, section: ModelSection) -> ModelSection:
    """Lower the recorded limit of prompts to what the base holds: earlier releases did not compare the two."""
    try:
        context = local_context(section)
    except ConfigError as error:
        raise ExportError(f"{path} lives on the base {section.base}: {error}") from None
    if context is None or section.max_prompt_tokens is None or context <= section.max_new_tokens:
        return section
    room = context - section.max_new_tokens
    if section.max_prompt_tokens > room:
        logger.warning(
            "%s records prompts of up to %d tokens; its base holds %d beside an answer, which is the limit here",
            *(path, section.max_prompt_tokens, room),
        )
    return section.model_copy(update={"max_prompt_tokens": min(section.max_prompt_tokens, room)})


def _scorer(path: Path, shared: SharedBase, prompts: Prompts, section: ModelSection) -> Scorer:
    encoder = Encoder(prompts, shared.tokenizer, with_prompt_limit(section, shared.context))
    return RewardScorer(encoder, RewardModel.load(shared, RewardFiles.of_export(path / REWARD)))


def _served(
    path: Path,
    record: ExportRecord | None,
    section: ModelSection,
    prompts: Prompts,
    url: str,
    server_model: str | None,
) -> ServedPolicy:
    """A policy whose server has answered; only the base's tokenizer is loaded here."""
    if record is None:
        name, start = server_model, serve_command(section, path, server_model or path.name)
    else:
        name, start = server_model or record.served_name, served_by(path, section.trust_remote_code)
    if not name:
        raise ExportError(f"{path} does not say what a server calls it: give server_model. Started by\n  {start}")
    try:
        tokenizer = load_tokenizer(section)
    except ConfigError as error:
        raise ExportError(
            f"{path} lives on the base {section.base}, whose tokenizer measures prompts: {error}; give base, a folder "
            "or hub name that has it"
        ) from None
    chat = bool(tokenizer.chat_template) if record is None or record.chat is None else record.chat
    client = served_client(request_section(url, name, section, tokenizer, chat), start)
    encoder = Encoder(prompts, tokenizer, with_prompt_limit(section, local_context(section)))
    policy = ServedPolicy(client, encoder, path.name)
    run_sync(policy.check())
    return policy


def recorded_prompts(path: Path, record: ExportRecord) -> Prompts:
    """The prompts that an export was trained with, by environment; the record's own for trajectories that name none."""
    folders = {name: path / PROMPTS / name.replace(":", ".") for name in record.environments}
    own = {name: PromptSet(name, folder) for name, folder in folders.items() if folder.is_dir()}
    return PromptLibrary(own, own[record.prompts]) if record.prompts in own else _prompts(record.prompts, path)


def _memory(path: Path, record: ExportRecord, trusted: bool) -> Memory | None:
    """The memory of the export's actor, with its bank. A memory of somebody's own is imported only if the user trusts
    the export's code; otherwise it is left out, with a warning."""
    section = record.memory
    if not isinstance(section, MemorySection):
        if not trusted:
            logger.warning(
                "%s: the memory %s is code of one's own: give it to RetroAgent (memory=…), or load the export with "
                "trust_remote_code=True",
                *(path / EXPORT, section["kind"]),
            )
            return None
        section = parse_section(MemorySection, section)
    for role, name in section.parts.items():
        logger.info("%s of the memory: %s (named by %s)", role, name, path / EXPORT)
    return make_memory(section, path / MEMORY if learns(section) else None)


def _log_base(section: ModelSection, path: Path, file: Path) -> None:
    """Log which base ``file`` names, unless it lies in the export or in the hub's cache."""
    local = Path(section.base)
    if local.exists():
        if not local.resolve().is_relative_to(path.resolve()):
            logger.info("base: %s (named by %s)", local.resolve(), file)
    elif not in_hub_cache(section.base, section.revision):
        logger.info("base: %s of the Hugging Face Hub, to be downloaded (named by %s)", section.base, file)


def _prompts(prompts: str | PromptSet, path: Path) -> PromptSet:
    if isinstance(prompts, PromptSet):
        return prompts
    try:
        return load_prompts(prompts)
    except ConfigError as error:
        raise ExportError(f"{path}: {error}; give a PromptSet") from None
