"""Stage ``collect``: the actor plays tasks, the model reflects on failures, and every reflection gets its own retry.

Reads the tasks, the actor and the retrospective model (the untrained base, or an adapter for a second round);
fills the replay buffer, one transaction for each episode. Nothing is played twice: an episode's id is the digest of
what decides it, so a killed or enlarged collection plays only what is missing. A second round, or a changed actor, has
other ids and other draws; the earlier episodes stay in the buffer.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from retro.actors.openai import OpenAIActor, OpenAIOptions
from retro.artifacts import digest_model, digest_parts, digest_path, write_json
from retro.buffer.store import ReplayBuffer
from retro.config import CheckpointSection, ConfigError, RunConfig, build
from retro.envs import played_environments
from retro.envs.base import TaskSet
from retro.layout import RunFolder
from retro.memory.bank import BankFacts, copy_bank
from retro.models.adapters import SharedBase
from retro.models.limits import READING_KEYS, SAMPLING_KEYS, prompt_tokens
from retro.models.loading import local_context, resolve_device
from retro.prompts import PromptLibrary
from retro.retrospective.adapter_files import checkpoint_of, find_adapter
from retro.retrospective.policy import Policy
from retro.rollout.attempts import Plan
from retro.rollout.collect import collect
from retro.rollout.progress import CollectionProgress
from retro.rollout.runner import Runner
from retro.rollout.spec import PlayerParts, PlayerSpec
from retro.rollout.trials import Unreflected
from retro.stage import Stage, Work
from retro.training.curator import curator_inputs, curator_of
from retro.training.episode_key import episode_key
from retro.training.examples import prompts_digest
from retro.training.rounds import (
    ActorFailedError,
    Round,
    Trees,
    check_rounds,
    collect_in_rounds,
    collect_within,
    outcome,
)
from retro.types import Episode, Split, StopReason, Task

logger = logging.getLogger(__name__)

SHOWN_UNREFLECTED = 5
MOST_CUT = 0.05
"""The fraction of tasks that an actor's errors may cut short before the stage counts as not done."""


def collect_inputs(config: RunConfig) -> dict[str, str]:
    """Digests of what is read: both models, the prompts, and the sft adapter if it reflects."""
    check_rounds(config)
    inputs = {
        "base": digest_model(config.model.base, config.model.revision),
        "prompts": prompts_digest(config, played_environments(config.environment)),
        **digest_parts(config.actor),
    }
    if config.collect.round_tasks is not None:
        inputs |= digest_parts(config.memory) | curator_inputs(config.memory)
    if isinstance(config.actor, CheckpointSection):
        inputs["actor"] = digest_model(config.actor.model)
    adapter = _writer(config)
    if adapter is not None:
        inputs["sft" if config.collect.source == "sft" else "source"] = digest_path(adapter)
    return inputs


def collect_into_buffer(config: RunConfig, work: Work) -> None:
    """Fill the buffer, and write a summary to ``collect.json``.

    Raises:
        ConfigError: for an unknown environment, or too few tasks in a split.
        ActorFailedError: if errors cut more than a twentieth of the tasks short, or one task of a round from which the
            memory was to learn.
    """
    section = config.collect
    device = resolve_device(config.device)
    unreflected: list[Unreflected] = []
    with PlayerParts(device, config.actor_ledger) as parts, ExitStack() as opened:
        tasks = collected_tasks(config, parts.taskset(config.environment))
        actor = parts.actor(config.actor) if isinstance(config.actor, OpenAIOptions) else None
        if isinstance(actor, OpenAIActor):
            asyncio.run(actor.check())  # before minutes are spent on loading the base, as the next ones
        checked: Runner = build(config.runner, spec=PlayerSpec.of(config), parts=parts)
        checked.close()
        learning = section.round_tasks is not None
        curating = curator_of(config.memory, RunFolder(config.run_dir).curator, device) if learning else nullcontext()
        ask = opened.enter_context(curating)
        prompt_tokens(config.model, local_context(config.model))
        buffer = opened.enter_context(ReplayBuffer(config.buffer_url))
        base = SharedBase.load(config.model, device)
        adapter, role, source = _writer(config), None, section.source
        if adapter is not None:
            role, source = "sft", source if source == "sft" else checkpoint_of(Path(source))[0]
            base.load_role(role, adapter, trainable=False)
        prompts = PromptLibrary.from_section(config.environment)
        generator = build(config.model.generator, base=base)
        policy = Policy.on(base, role, prompts, config.model, source, generator)
        plan = Plan.of((config.seed, "collect", episode_key(config, work.inputs)), section, config.actor)

        keep: Callable[[Episode], Episode] = (lambda episode: episode) if learning else outcome

        def skip(skipped: Unreflected) -> None:
            unreflected.append(replace(skipped, episode=outcome(skipped.episode)))

        def play(wave: Sequence[Task], bank: Path | None, label: str) -> Trees:
            named = plan if bank is None else replace(plan, key=(*plan.key, BankFacts.read(bank).digest))
            progress = CollectionProgress(len(wave), label)
            runner: Runner = build(config.runner, spec=PlayerSpec.of(config, bank), parts=parts)
            with closing(runner):
                return asyncio.run(collect(runner, wave, named, policy, buffer, progress, skip, keep))

        rounds: list[Round] = []
        if section.round_tasks is not None:
            banks = work.folder / "rounds"
            rounds, bank = collect_in_rounds(section.round_tasks, tasks, config.memory, banks, play, ask)
            copy_bank(bank, work.output("bank", RunFolder(config.run_dir).online_bank))
            trees = [tree for played in rounds for tree in played.trees]
        elif section.episodes is not None:
            trees = collect_within(section.episodes, plan.most, tasks, play)
        else:
            trees = play(tasks, None, "collect")
        held = buffer.count()
    episodes = [episode for tree in trees for episode in tree]
    summary = summarise(trees, unreflected) | ({"rounds": [played.to_json() for played in rounds]} if rounds else {})
    other = held - sum(not episode.broken for episode in episodes)
    if other:
        logger.info("the buffer also holds %d other episodes: training reads them, too", other)
    write_json(work.output("summary", work.folder / "collect.json"), summary | {"other_episodes": other})
    work.log(len(episodes), **{key: value for key, value in summary.items() if not isinstance(value, dict | list)})
    _warn_of_long_episodes(summary)
    refuse_a_failing_actor(trees)
    if config.buffer.url is None:
        work.output("buffer", RunFolder(config.run_dir).buffer)


def collected_tasks(config: RunConfig, taskset: TaskSet) -> list[Task]:
    """The tasks to play: the first ones of each split that is collected, in order.

    Raises:
        ConfigError: if a split has too few.
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
    """Counts of the whole collection, success rates by split, and the first episodes that were too long to be
    reflected on."""
    episodes = [episode for tree in trees for episode in tree]
    reasons = {skipped.episode.id: skipped.reason for skipped in unreflected}
    skipped = [episode for episode in episodes if episode.id in reasons]  # in the order of the tasks
    advice = sum(len(episode.advice) for episode in episodes)
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
        "kept_steps": sum(episode.info.get("kept_steps", 0) for episode in episodes),
        **({"advice": advice} if advice else {}),
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
            "%d failed episodes could not be reflected on and were not retried, the first of task %s: %s. To reflect "
            "on them, raise model.max_prompt_tokens and run the same command again: %s played again",
            *(summary["unreflected"], first["task"], first["reason"]),
            "later rounds, whose bank will be another, are" if "rounds" in summary else "nothing else is",
        )
    if summary["context_stops"]:
        logger.warning(
            "%d of %d episodes ended because the actor's prompt no longer fitted actor.context_tokens: they count as "
            "failed",
            *(summary["context_stops"], summary["episodes"]),
        )


def refuse_a_failing_actor(trees: list[list[Episode]]) -> None:
    """Raise :class:`ActorFailedError` if errors of the actor or the environment cut too many trees short, else warn."""
    errors = [episode for tree in trees for episode in tree if episode.broken]
    cut = len({(episode.task.environment, episode.task.id) for episode in errors})
    if not cut:
        return
    who = " or the ".join(sorted({episode.broken_by for episode in errors}))
    if cut > MOST_CUT * len(trees):
        raise ActorFailedError(
            f"the {who} failed in {cut} of {len(trees)} tasks, first in {errors[0].task.id}: "
            f"{errors[0].info['error']}; what was played is kept: correct this, and run the same command again"
        )
    logger.warning("the %s failed in %d of %d tasks: those trees are cut short", who, cut, len(trees))


def _writer(config: RunConfig) -> Path | None:
    """The adapter that writes the reflections; None: the untrained base."""
    source = config.collect.source
    if source == "base":
        return None
    if source != "sft":
        try:
            return find_adapter(Path(source))
        except ConfigError as error:
            raise ConfigError(f"collect.source is not base, sft or an adapter's path: {error}") from None
    path = RunFolder(config.run_dir).sft_adapter
    if not path.is_dir():
        raise ConfigError(f"collect.source is 'sft', but there is no {path}: run with collect.source=base first")
    return path


def _mean(values: list[bool]) -> float | None:
    return sum(values) / len(values) if values else None


STAGE = Stage(
    name="collect",
    folder="collect",
    reads=(),
    keys=(
        "environment.name",
        "environment.options",
        "environment.tasks",
        "actor",
        "memory",
        "model.base",
        "model.revision",
        *READING_KEYS,
        *SAMPLING_KEYS,
        "buffer.url",
        "collect",
    ),
    not_deciding=("environment.prompts", "model.lora"),
    inputs=collect_inputs,
    run=collect_into_buffer,
)
