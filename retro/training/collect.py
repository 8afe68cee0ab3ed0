"""Stage ``collect``: the frozen actor plays tasks, failures are reflected on, every reflection gets its own retry.

Reads the tasks, the actor and the retrospective model (the untrained base, or the ``sft`` adapter for a second round);
fills the replay buffer, one transaction an episode. Nothing is played twice: an episode's id is the digest of what
decides it, so a killed, or enlarged, collection plays what is missing alone. A second round, or a changed actor, has
other ids and other draws; what the buffer held before stays in it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.artifacts import digest_actor_parts, digest_model, digest_path, write_json
from retro.buffer.store import ReplayBuffer
from retro.config import ACTOR_KEYS, CheckpointSection, ConfigError, RunConfig, build
from retro.envs import played_environments
from retro.envs.base import TaskSet
from retro.models.adapters import SharedBase
from retro.models.loading import resolve_device
from retro.prompts import PromptLibrary
from retro.retrospective.policy import Policy
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.rollout.trials import Unreflected
from retro.stage import Stage, config_part, open_stage, stage_folder
from retro.training.examples import prompts_digest
from retro.types import Episode, Split, StopReason, Task

logger = logging.getLogger(__name__)

SECTIONS = (
    "environment.name",
    "environment.options",
    "environment.tasks",
    *ACTOR_KEYS,
    "memory",
    "model.base",
    "model.revision",
    "model.dtype",
    "model.quantization",
    "model.rope_scaling",
    "model.max_prompt_tokens",
    "model.max_new_tokens",
    "model.temperature",
    "model.top_p",
    "buffer.url",
    "collect",
)
COUNTS = ("environment.tasks", "collect")
"""Sections that say how much is played (tasks, attempts, group), beside the few keys of them that say what."""
NOT_NAMING = (*COUNTS, "buffer.url", "model.max_prompt_tokens")
"""What does not name an episode. A limit on prompts can be raised for the few that are too long: the rest stay."""
_NAMED_BY: dict[str, Any] = {
    "adapter": None,
    "base_url": None,
    "chat_template_kwargs": {},
    "dtype": "float32",
    "endpoint": "chat",
    "extra_body": {},
    "limit_parameter": "max_tokens",
    "quantization": "none",
    "revision": None,
    "tokenizer": None,
    "trust_remote_code": False,
}
"""Keys that name an episode whether the actor's kind reads them or not, as they did before each kind had its own: the
same config plays the same episodes."""
SHOWN_UNREFLECTED = 5
MOST_CUT = 0.05
"""The fraction of tasks that an actor's errors may cut short before the stage counts as not done."""


def stage_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what is read: both models, the prompts, and the sft adapter where that one reflects."""
    inputs = {
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config, played_environments(config.environment)),
        **digest_actor_parts(config.actor),
    }
    if isinstance(config.actor, CheckpointSection):
        inputs["actor"] = digest_model(config.actor.model)
    if config.collect.source == "sft":
        inputs["sft"] = digest_path(_sft_adapter(config))
    return inputs


def run_collect(config: RunConfig) -> Path:
    """Fill the buffer; return the stage's folder (``collect.json``: what was played and how it went).

    Raises:
        ConfigError: for an unknown environment, too few tasks in a split, ``collect.source: sft`` without an adapter.
        ActorFailedError: if the actor's errors cut more than a twentieth of the tasks short.
    """
    inputs = stage_inputs(config)
    with open_stage(config, "collect", inputs, SECTIONS) as stage:
        if not stage.up_to_date and stage.main:  # one process plays: its batches are the parallelism
            _collect(config, inputs, stage)
    return stage.folder


class ActorFailedError(ValueError):
    """The actor (or the environment) failed for good in too many tasks: the same command goes on where it stopped."""


def _collect(config: RunConfig, inputs: dict[str, str], stage: Stage) -> None:
    section = config.collect
    device = resolve_device(config.device)
    unreflected: list[Unreflected] = []
    with PlayerParts(device, config.actor_ledger) as parts:
        tasks = collected_tasks(config, parts.taskset(config.environment))
        actor = parts.actor(config.actor) if isinstance(config.actor, OpenAIOptions) else None
        if isinstance(actor, OpenAIActor):
            asyncio.run(actor.check())  # before minutes are spent on loading the base
        base = SharedBase.load(config.model, device)
        role = None
        if section.source == "sft":
            role = "sft"
            base.load_role(role, _sft_adapter(config), trainable=False)
        prompts = PromptLibrary.from_section(config.environment)
        policy = Policy.on(base, role, prompts, config.model, source=section.source)
        plan = Plan.of((config.seed, "collect", _key(config, inputs)), section, config.actor)
        runner: Runner = build(config.runner, spec=PlayerSpec.of(config), parts=parts)
        with closing(runner), ReplayBuffer(config.buffer_url) as buffer:
            progress = CollectionProgress(len(tasks))
            trees = asyncio.run(collect(runner, tasks, plan, policy, buffer, progress, unreflected.append))
            held = buffer.counts().episodes
    episodes = [episode for tree in trees for episode in tree]
    summary = summarise(trees, unreflected)
    other = held - sum(not episode.broken for episode in episodes)
    if other:
        logger.info("the buffer also holds %d episodes from elsewhere: training reads them too", other)
    write_json(stage.output("summary", stage.folder / "collect.json"), summary | {"other_episodes": other})
    stage.log(len(episodes), **{key: value for key, value in summary.items() if not isinstance(value, dict | list)})
    _warn_of_long_episodes(summary)
    refuse_a_failing_actor(trees)
    if config.buffer.url is None:
        stage.output("buffer", config.run_dir / "buffer.sqlite")


def collected_tasks(config: RunConfig, taskset: TaskSet) -> list[Task]:
    """What is played: the first tasks of each split that is collected, in order.

    Raises:
        ConfigError: if a split has fewer.
    """
    counts = config.environment.tasks
    tasks: list[Task] = []
    for split in map(Split, config.collect.splits):
        try:
            tasks += taskset.tasks(split, getattr(counts, split.value), counts.offset)
        except ValueError as error:
            raise ConfigError(f"environment.tasks.{split.value}: {error}") from None
    return tasks


def summarise(trees: list[list[Episode]], unreflected: Sequence[Unreflected] = ()) -> dict[str, Any]:
    """What a collection amounts to: counts, by split how the first attempts and the retries ended, and the first of
    those that were too long to be reflected on."""
    episodes = [episode for tree in trees for episode in tree]
    reasons = {skipped.episode.id: skipped.reason for skipped in unreflected}
    skipped = [episode for episode in episodes if episode.id in reasons]  # in the order of the tasks
    by_split = {}
    for split in sorted({episode.task.split for episode in episodes}):
        own = [episode for episode in episodes if episode.task.split == split]
        first = [episode.success for episode in own if episode.parent is None]
        reflected = [episode.success for episode in own if episode.reflection is not None]
        controls = [episode.success for episode in own if episode.parent is not None and episode.reflection is None]
        by_split[split.value] = {
            "first_attempts": len(first),
            "first_success": _mean(first),
            "retries": len(reflected),
            "retry_success": _mean(reflected),
            "controls": len(controls),
            "control_success": _mean(controls),
        }
    return {
        "tasks": len(trees),
        "episodes": len(episodes),
        "success_fraction": _mean([any(episode.success for episode in tree) for tree in trees]),
        "actor_tokens": sum(episode.usage.total for episode in episodes),
        "actor_errors": sum(episode.broken for episode in episodes),
        "context_stops": sum(episode.stop is StopReason.CONTEXT for episode in episodes),
        "unreflected": len(skipped),
        "splits": by_split,
        "first_unreflected": [
            {"task": episode.task.id, "episode": episode.id, "reason": reasons[episode.id]}
            for episode in skipped[:SHOWN_UNREFLECTED]
        ],
    }


def _warn_of_long_episodes(summary: Mapping[str, Any]) -> None:
    if summary["unreflected"]:
        first = summary["first_unreflected"][0]
        logger.warning(
            "%d failed episodes could not be reflected on and were not retried, first of task %s: %s. To reflect on "
            "them, raise model.max_prompt_tokens and run the same command again: nothing else is played again",
            *(summary["unreflected"], first["task"], first["reason"]),
        )
    if summary["context_stops"]:
        logger.warning(
            "%d of %d episodes ended because the actor's prompt no longer fitted actor.context_tokens: they count as "
            "failed",
            *(summary["context_stops"], summary["episodes"]),
        )


def refuse_a_failing_actor(trees: list[list[Episode]]) -> None:
    """Raise :class:`ActorFailedError` if errors, also the environment's, cut too many trees short; log any cut."""
    errors = [episode for tree in trees for episode in tree if episode.broken]
    cut = len({(episode.task.environment, episode.task.id) for episode in errors})
    if not cut:
        return
    who = " or the ".join(sorted({episode.broken_by for episode in errors}))
    if cut > MOST_CUT * len(trees):
        raise ActorFailedError(
            f"the {who} failed in {cut} of {len(trees)} tasks, first in {errors[0].task.id}: "
            f"{errors[0].info['error']}; what was played is kept: run the same command again once that is mended"
        )
    logger.warning("the %s failed in %d of %d tasks: those trees are cut short", who, cut, len(trees))


def _key(config: RunConfig, inputs: dict[str, str]) -> str:
    """Names what decides an episode: everything that is read but ``NOT_NAMING``."""
    parts = config_part(config, [section for section in SECTIONS if section not in NOT_NAMING])
    actor = _NAMED_BY | parts.pop("actor")
    parts |= {f"actor.{key}": value for key, value in actor.items()} | {"source": config.collect.source}
    return hashlib.sha256(json.dumps([parts, inputs], sort_keys=True).encode()).hexdigest()[:16]


def _sft_adapter(config: RunConfig) -> Path:
    path = stage_folder(config, "sft") / "adapter"
    if not path.is_dir():
        raise ConfigError(f"collect.source is 'sft', but there is no {path}: run with collect.source=base first")
    return path


def _mean(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None
