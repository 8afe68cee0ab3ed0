"""Arms: ways of playing that are evaluated. An arm = actor + memory + reflection source + sampler.

Importable without torch: naming and listing arms loads no model (``retro run --dry-run`` does it).
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from retro.artifacts import digest_actor_parts, digest_model, digest_path
from retro.config import ActorSection, ConfigError, MemorySection, PpoSection, RunConfig, deciding
from retro.envs import deciding_options, played_environments
from retro.evaluation.locate import find_adapter, reward_model, stage_adapter
from retro.evaluation.records import FORMAT
from retro.evaluation.results import split_best_of
from retro.prompts import PromptLibrary

REWARDS = {"model": "rm", "environment": "env", "mix": "mix"}
POLICIES = (*(f"{algorithm}-{reward}" for algorithm in ("ppo", "grpo") for reward in REWARDS.values()), "dpo")
"""The PPO stage's arms, by its algorithm and reward. The algorithm alone means it whatever the reward is."""


class Source(StrEnum):
    """Where an arm's reflections come from."""

    NONE = "none"
    BASE = "base"
    """The untrained retrospective model: the base with its adapters off."""
    ADAPTER = "adapter"
    SHUFFLED = "shuffled"
    """What the best arm's model wrote for another task of the same kind and trial."""
    ORACLE = "oracle"
    VAGUE = "vague"
    """One sentence that says nothing about the task."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of playing. Two arms with equal parts play equal episodes."""

    name: str
    actor: ActorSection
    memory: MemorySection
    source: Source
    attempts: int
    best_of: int = 1
    """Reflections sampled for each failure; the one with the highest score of the reward model is kept."""
    adapter: Path | None = None
    """``Source.ADAPTER`` only."""


def selected_arms(config: RunConfig) -> list[Arm]:
    """The arms of ``evaluate.arms`` (empty: all that the run has the models for) and of ``evaluate.checkpoints``.

    Raises:
        ConfigError: for a name that is no arm, or an arm whose model the run does not have.
    """
    names = config.evaluate.arms or list(available_names(config))
    arms = {name: make_arm(config, name) for name in names}
    for name, path in config.evaluate.checkpoints.items():
        if name in arms:
            raise ConfigError(f"evaluate.checkpoints: {name!r} is already an arm of this run; choose another name")
        arms[name] = _of_adapter(config, name, find_adapter(Path(path)))
    return list(arms.values())


def available_names(config: RunConfig) -> Iterator[str]:
    """Every arm that the run has the models for, in the order of the results."""
    yield from ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion")
    if stage_adapter(config, "sft"):
        yield "sft"
    if stage_adapter(config, "ppo"):
        ppo = policy_name(config.ppo)
        yield ppo
        if reward_model(config):
            yield from (f"{ppo}-bon{n}" for n in config.evaluate.best_of)
    yield "oracle"


def make_arm(config: RunConfig, name: str) -> Arm:
    """Build an arm by name; ``-bonN`` behind the name of an arm with a model makes its Best-of-N.

    Raises:
        ConfigError: for an unknown name, or if the model is missing.
    """
    base, best_of = split_best_of(name)
    if base in REGISTRY:
        arm = replace(REGISTRY[base](config), name=name, best_of=best_of)
    elif base in ("ppo", "grpo", *POLICIES):
        arm = _ppo(config, base, name)
    else:
        known = [*REGISTRY, "ppo", "grpo", *POLICIES]
        near = difflib.get_close_matches(base, known, n=1, cutoff=0.5)
        raise ConfigError(
            f"evaluate.arms: {name!r} is no arm; "
            + (f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}, and their -bonN")
        )
    return _checked(config, arm)


def policy_name(section: PpoSection) -> str:
    """``ppo-env``, ``grpo-rm`` …; ``dpo`` learns from the buffer's ratings, whatever the reward is."""
    return "dpo" if section.algorithm == "dpo" else f"{section.algorithm}-{REWARDS[section.reward]}"


def prompts_digest(config: RunConfig) -> str:
    """Names the prompt templates that the arms play with."""
    return PromptLibrary.from_section(config.environment).digest(played_environments(config.environment))


def fingerprint(arm: Arm, config: RunConfig, *further: str) -> str:
    """Digest of all that decides the arm's episodes, but which tasks are played and how many attempts."""
    environment = config.environment
    written = arm.source in (Source.BASE, Source.ADAPTER)
    model = config.model.model_dump(mode="json", exclude={"lora", "gradient_checkpointing"}) if written else None
    reward = reward_model(config) if arm.best_of > 1 else None
    parts = {
        "format": FORMAT,
        "seed": config.seed,
        "environment": [environment.name, deciding_options(environment.name, environment.options)],
        "actor": deciding(arm.actor),
        "actor_model": digest_model(arm.actor.model),
        **digest_actor_parts(arm.actor),
        "memory": arm.memory.model_dump(mode="json"),
        "source": arm.source,
        "best_of": arm.best_of,
        "model": model,
        "base": digest_model(config.model.base, config.model.revision) if model else None,
        "adapter": digest_path(arm.adapter) if arm.adapter else None,
        "reward": reward.digest if reward else None,
        "prompts": prompts_digest(config),
        "further": further,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _plain(config: RunConfig, source: Source) -> Arm:
    return Arm("", config.actor, config.memory, source, config.evaluate.attempts)


def _greedy(config: RunConfig) -> Arm:
    return replace(_plain(config, Source.NONE), actor=config.actor.model_copy(update={"temperature": 0.0}))


def _sampled(config: RunConfig) -> Arm:
    actor = config.actor.model_copy(update={"temperature": config.evaluate.sampled_temperature})
    return replace(_plain(config, Source.NONE), actor=actor)


def _sft(config: RunConfig) -> Arm:
    adapter = stage_adapter(config, "sft")
    if adapter is None:
        raise ConfigError(f"evaluate.arms: 'sft' needs the sft stage of {config.run_dir}; first: retro sft CONFIG")
    return replace(_plain(config, Source.ADAPTER), adapter=adapter)


def _ppo(config: RunConfig, base: str, name: str) -> Arm:
    own = policy_name(config.ppo)
    if base not in (config.ppo.algorithm, own):
        raise ConfigError(
            f"evaluate.arms: {name!r}: this run's ppo.algorithm is {config.ppo.algorithm!r} and its ppo.reward is "
            f"{config.ppo.reward!r}, which makes the arm {own!r}; for another run's use evaluate.checkpoints: "
            f"{{{name}: PATH}}"
        )
    adapter = stage_adapter(config, "ppo")
    if adapter is None:
        raise ConfigError(f"evaluate.arms: {name!r} needs the ppo stage of {config.run_dir}; first: retro ppo CONFIG")
    return replace(_plain(config, Source.ADAPTER), name=name, adapter=adapter, best_of=split_best_of(name)[1])


def _of_adapter(config: RunConfig, name: str, adapter: Path) -> Arm:
    arm = replace(_plain(config, Source.ADAPTER), name=name, adapter=adapter, best_of=split_best_of(name)[1])
    return _checked(config, arm)


def _checked(config: RunConfig, arm: Arm) -> Arm:
    if arm.best_of > 1 and arm.source not in (Source.BASE, Source.ADAPTER):
        raise ConfigError(f"evaluate.arms: {arm.name!r}: only an arm whose reflections are sampled has a Best-of-N")
    if arm.best_of > 1 and reward_model(config) is None:
        raise ConfigError(
            f"evaluate.arms: {arm.name!r} needs the reward model of {config.run_dir}; first: retro reward CONFIG"
        )
    return arm


REGISTRY: dict[str, Callable[[RunConfig], Arm]] = {
    "one-shot": lambda config: replace(_plain(config, Source.NONE), attempts=1),
    "retry": _greedy,
    "retry-sampled": _sampled,
    "shuffled": lambda config: _plain(config, Source.SHUFFLED),
    "reflexion": lambda config: _plain(config, Source.BASE),
    "sft": _sft,
    "oracle": lambda config: _plain(config, Source.ORACLE),
    "vague": lambda config: _plain(config, Source.VAGUE),
}
