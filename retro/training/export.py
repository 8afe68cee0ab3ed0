"""Stage ``export``: copy the policy, the reward model and what belongs to them out of the run folder.

``export/adapter`` loads with ``PeftModel.from_pretrained`` alone (and in servers that take LoRA adapters);
``export/reward`` is the reward adapter, with its head in a file of its own; ``retro.json`` names the base, the memory
and the scale of the scores; ``export/prompts`` has the prompts, and ``export/memory`` the bank of a memory that learns
across tasks.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from retro.agent.integrity import file_records
from retro.agent.loading import REWARD
from retro.agent.records import EXPORT, MEMORY, PROMPTS, BaseRecord, ExportRecord
from retro.artifacts import digest_path, git_revision, versions, write_json
from retro.buffer.engine import ReplayBufferError
from retro.buffer.store import ReplayBuffer
from retro.config import ConfigError, ModelSection, RunConfig
from retro.envs import played_environments
from retro.layout import ADAPTER, ADAPTER_CONFIG, BEST, RunFolder
from retro.memory.bank import bank_inputs, bank_of, copy_bank
from retro.models.adapter_files import IDENTITY, WEIGHTS
from retro.models.limits import with_prompt_limit
from retro.models.loading import base_context, base_identity, load_model_config, load_tokenizer
from retro.prompts import FILES as PROMPT_FILES
from retro.prompts import PromptLibrary
from retro.retrospective.reward_files import RewardFiles, facts_file
from retro.stage import Stage, Work
from retro.training.checkpoints import checkpoints
from retro.training.rewards.model import measured_scale

logger = logging.getLogger(__name__)

ADAPTER_FILES = (ADAPTER_CONFIG, WEIGHTS, IDENTITY)
"""PEFT's own files, and the identity of the base. An export does not need a checkpoint's other files."""


def export_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of the adapters that are exported."""
    prompts = PromptLibrary.from_section(config.environment).digest(exported_environments(config))
    inputs = {"policy": digest_path(policy_folder(config)), "prompts": prompts} | bank_inputs(config)
    folder = RunFolder(config.run_dir).reward
    if facts_file(folder).is_file():
        reward = RewardFiles.of_stage(folder)
        inputs["reward"] = digest_path(reward.adapter) + digest_path(reward.head)
    return inputs


def policy_folder(config: RunConfig) -> Path:
    """The adapter to export: the best (or last) one of the stage ppo, or the sft adapter of a run without that stage.

    Raises:
        ConfigError: if there is none.
    """
    run = RunFolder(config.run_dir)
    ppo, sft = run.policy, run.sft_adapter
    found = checkpoints(ppo)
    if config.export.checkpoint == "best" and (ppo / BEST).is_dir():
        return ppo / BEST
    if config.export.checkpoint == "last" and found:
        return found[-1][1]
    if ppo.is_dir():
        raise ConfigError(f"{ppo} has no {config.export.checkpoint} checkpoint yet: run the stage ppo to its end")
    if not sft.is_dir():
        raise ConfigError(f"nothing to export: neither {ppo} nor {sft} exists; run the stages sft and ppo first")
    logger.info("export: this run has no ppo stage, so its sft adapter is exported")
    return sft


def exported_environments(config: RunConfig) -> list[str]:
    """The environments whose prompts the adapter was trained with: the buffer's, or those that the config chose."""
    if config.buffer.environments:
        return sorted(config.buffer.environments)
    try:
        with ReplayBuffer(config.buffer_url, create=False) as buffer:
            held = buffer.environments()
    except ReplayBufferError as error:  # the buffer is gone, and the adapters that were trained on it are still here
        logger.info("export: %s: only the prompts of environment.name are exported", error)
        held = []
    return held or played_environments(config.environment)


def write_export(config: RunConfig, work: Work) -> None:
    """Write the adapters, the reward head, the prompts and ``retro.json``."""
    copy_adapter(policy_folder(config), work.output(ADAPTER, work.folder / ADAPTER))
    folder = RunFolder(config.run_dir).reward
    record = None
    if facts_file(folder).is_file():
        reward = RewardFiles.of_stage(folder)
        copied = RewardFiles.of_export(work.output(REWARD, work.folder / REWARD))
        copy_adapter(reward.adapter, copied.adapter)
        shutil.copyfile(reward.head, copied.head)
        record = measured_scale(folder)
    environments = exported_environments(config)
    copy_prompts(config, environments, work.output(PROMPTS, work.folder / PROMPTS))
    bank = bank_of(config.memory, config)
    if bank is not None:
        copy_bank(bank, work.output(MEMORY, work.folder / MEMORY))
    parts = [ADAPTER, PROMPTS, *([REWARD] if record else []), *([MEMORY] if bank else [])]
    own = config.environment.name
    export = ExportRecord(
        base=BaseRecord(
            name=config.model.base,
            revision=config.model.revision,
            identity=base_identity(config.model.base, config.model.revision, config.model.trust_remote_code),
        ),
        prompts=own if own in environments else environments[0],
        environments=environments,
        served_name=f"{config.name}-{digest_path(work.folder / ADAPTER / WEIGHTS)[:8]}",
        chat=bool(load_tokenizer(config.model).chat_template),
        config_overrides=config_overrides(config.model),
        model=with_prompt_limit(config.model, base_context(config.model)),
        memory=config.memory.recalling,
        reward=record,
        files=file_records(work.folder, parts),
        versions={**versions(), "git": git_revision()},
    )
    write_json(work.output("record", work.folder / EXPORT), export.model_dump(mode="json"))


def config_overrides(section: ModelSection) -> dict[str, Any]:
    """What a server must replace in the base's ``config.json``: all rotary parameters, if ``rope_scaling`` changes them
    or the run has fixed a longrope base to one of its two sets of frequencies."""
    rotary = getattr(load_model_config(section), "rope_parameters", None) or {}
    fixed = section.rope_scaling is not None or rotary.get("rope_type") == "longrope"
    return {"rope_parameters": dict(rotary)} if fixed else {}


def copy_prompts(config: RunConfig, environments: Sequence[str], target: Path) -> None:
    """Copy the prompts of each environment, since a later release may have others than the adapter was trained with."""
    if target.exists():  # left by an export that was interrupted
        shutil.rmtree(target)
    library = PromptLibrary.from_section(config.environment)
    for name in environments:
        folder = target / name.replace(":", ".")
        folder.mkdir(parents=True)
        for file in PROMPT_FILES:
            if (library.of(name).folder / file).is_file():
                shutil.copyfile(library.of(name).folder / file, folder / file)


def copy_adapter(source: Path, target: Path) -> None:
    """Copy the plain PEFT adapter from ``source``, which may hold more."""
    if target.exists():  # left by an export that was interrupted
        shutil.rmtree(target)
    target.mkdir(parents=True)
    for name in ADAPTER_FILES:
        if not (source / name).is_file():
            raise ConfigError(f"{source} is not a PEFT adapter: it has no {name}; run its stage again")
        shutil.copyfile(source / name, target / name)


STAGE = Stage(
    name="export",
    folder="export",
    reads=("memory", "sft", "reward", "ppo"),
    keys=("name", "model", "memory", "environment.name", "environment.prompts", "buffer.environments", "export"),
    not_deciding=("buffer.url", "environment.options"),
    inputs=export_inputs,
    run=write_export,
)
