"""The arms of a config: short names with the parts that they stand for, and arms that are written as their parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retro.config import (
    POINTS,
    ActorSection,
    ArmSection,
    ConfigError,
    MemorySection,
    PolicySection,
    RunConfig,
    SamplerSection,
    parse_config,
    parse_section,
)
from retro.evaluation.arms import MODELS, Arm, Policy, Writer, check_models
from retro.evaluation.locate import checkpoint_of, reward_model, stage_adapter

_REWARDS = {"model": "rm", "environment": "env"}
_MIXED = "mix"
_WRITERS = {str(writer): writer for writer in Writer if writer is not Writer.ADAPTER}
_SIZES = range(2, 65)
"""The N for which ``…-bonN`` needs no ``evaluate.best_of``."""


@dataclass(frozen=True, slots=True)
class Preset:
    """What a short name stands for."""

    parts: ArmSection
    what: str


def presets(config: RunConfig) -> dict[str, Preset]:
    """The short names without their Best-of-N, in the order of the results."""
    sampled = {"temperature": config.evaluate.sampled_temperature}

    def preset(name: str, what: str, **parts: Any) -> tuple[str, Preset]:
        return name, Preset(ArmSection(name=name, **parts), what)

    return dict(
        [
            preset("one-shot", "no reflection, one attempt", policy="none", attempts=1),
            preset("retry", "no reflection; the actor at temperature 0", policy="none", actor={"temperature": 0.0}),
            preset(
                "retry-sampled",
                "no reflection; the actor at `evaluate.sampled_temperature`",
                policy="none",
                actor=sampled,
            ),
            preset(
                "shuffled", "the best arm's, written for another task of the same kind and attempt", policy="shuffled"
            ),
            preset("reflexion", "the untrained base's", policy="base"),
            preset("sft", "the SFT stage's", policy="sft"),
            *(preset(name, "the policy stage's", policy=name) for name in own_policies(config.ppo)),
            preset("oracle", "by someone who knows the task, where the environment can give one", policy="oracle"),
            preset("vague", "one sentence that says nothing about the task", policy="vague"),
        ]
    )


def own_policies(section: PolicySection) -> list[str]:
    """The names of this run's policy: its algorithm, and its algorithm with its reward."""
    return list(dict.fromkeys([_short(section.algorithm), policy_name(section)]))


def policy_name(section: PolicySection) -> str:
    """``ppo-env``, ``grpo-rm`` …; the algorithm alone where it learns from the buffer's ratings."""
    algorithm, rewards = _short(section.algorithm), {term.kind for term in section.rewards}
    if not rewards:
        return algorithm
    return f"{algorithm}-{_reward(rewards.pop()) if len(rewards) == 1 else _MIXED}"


def _short(kind: str) -> str:
    """``imitation`` of ``package.module:Imitation``; a built-in kind's own name."""
    return kind.rpartition(":")[2].lower()


def _reward(kind: str) -> str:
    return _REWARDS.get(kind, _short(kind))


def _policies_of_other_runs() -> set[str]:
    rewards = ["", *(f"-{_reward(kind)}" for kind in POINTS["reward"].kinds), f"-{_MIXED}"]
    return {algorithm + reward for algorithm in POINTS["algorithm"].kinds for reward in rewards}


def available_names(config: RunConfig) -> Iterator[str]:
    """The short name of every arm that the run has the models for, in the order of the results."""
    yield from ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion")
    if stage_adapter(config, "sft"):
        yield "sft"
    if stage_adapter(config, "ppo"):
        ppo = policy_name(config.ppo)
        yield ppo
        if reward_model(config):
            yield from (_best_of_name(ppo, n) for n in config.evaluate.best_of)
    yield "oracle"


def selected_arms(config: RunConfig) -> list[Arm]:
    """The arms of ``evaluate.arms`` (empty: all that the run has the models for) and of ``evaluate.checkpoints``.

    Raises:
        ConfigError: for what :func:`planned_arms` refuses, or an arm whose model the run does not have.
    """
    arms = planned_arms(config)
    for arm in arms:
        check_models(arm, config)
    return arms


def planned_arms(config: RunConfig) -> list[Arm]:
    """:func:`selected_arms` before the run has the models.

    Raises:
        ConfigError: for a name that is not an arm, two arms of one name, or parts that do not fit together.
    """
    known = short_names(config)
    arms: dict[str, Arm] = {}
    for entry in config.evaluate.arms or available_names(config):
        section = _named(config, entry, known) if isinstance(entry, str) else entry
        if section.name in arms and section is not entry:
            continue  # a short name that is given twice
        _add(arms, _arm(config, section), "evaluate.arms")
    for name, path in config.evaluate.checkpoints.items():
        _refuse_best_of_name(config, name, path)
        _add(arms, _arm(config, ArmSection(name=name, policy=path)), "evaluate.checkpoints")
    return list(arms.values())


def short_names(config: RunConfig) -> dict[str, ArmSection]:
    """Every name that ``evaluate.arms`` understands: the presets, and the Best-of-N of those with a model."""
    plain = {name: preset.parts for name, preset in presets(config).items()}
    sampled = [
        name for name, parts in plain.items() if parts.policy not in _WRITERS or _WRITERS[parts.policy] in MODELS
    ]
    return plain | {arm.name: arm for name in sampled for n in _sizes(config) for arm in [best_of(plain[name], n)]}


def best_of(arm: ArmSection, n: int) -> ArmSection:
    """``arm`` with the best of ``n`` reflections by the reward model's score, under a name of its own."""
    sampler = parse_section(SamplerSection, {"kind": "best_of", "n": n} if n > 1 else "first")
    return arm.model_copy(update={"name": _best_of_name(arm.name, n), "sampler": sampler})


def _best_of_name(name: str, n: int) -> str:
    return f"{name}-bon{n}"


def _sizes(config: RunConfig) -> list[int]:
    return sorted({*_SIZES, *config.evaluate.best_of})


def _named(config: RunConfig, name: str, known: Mapping[str, ArmSection]) -> ArmSection:
    if name in known:
        return known[name]
    _refuse_other_runs_policy(config, name, name)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    plain = [arm for arm, section in known.items() if section.sampler.kind == "first"]
    raise ConfigError(
        f"evaluate.arms: {name!r} is not an arm; "
        + (f"did you mean {near[0]!r}? " if near else "")
        + f"there are {', '.join(plain)}, -bonN behind those that a model writes for (N up to {_SIZES[-1]}, or any in "
        "evaluate.best_of), and arms of your own: {name: …, policy: …}"
    )


def _refuse_best_of_name(config: RunConfig, name: str, path: str) -> None:
    """Earlier versions took the sampler of a checkpoint from its name: that must not become another arm unnoticed."""
    for n in _sizes(config):
        if name.endswith(_best_of_name("", n)):
            raise ConfigError(
                f"evaluate.checkpoints: {name!r}: a name does not choose the sampler; write it into evaluate.arms: "
                f"{{name: {name}, policy: {path}, sampler: {{kind: best_of, n: {n}}}}}"
            )


def _add(arms: dict[str, Arm], arm: Arm, key: str) -> None:
    if arm.name in arms:
        raise ConfigError(f"{key}: {arm.name!r} is already an arm of this run; choose another name")
    arms[arm.name] = arm


def _arm(config: RunConfig, section: ArmSection) -> Arm:
    name, most = section.name, config.evaluate.attempts
    policy = _policy(config, section)
    if section.sampler.kind != "first" and policy.writer not in MODELS:
        raise ConfigError(f"evaluate.arms: {name!r}: only an arm whose reflections are sampled has a sampler")
    if section.attempts is not None and section.attempts > most:
        raise ConfigError(
            f"evaluate.arms: {name!r}: attempts: {section.attempts} is more than evaluate.attempts, {most}"
        )
    memory: MemorySection = _changed(config, "memory", section)
    actor: ActorSection = _changed(config, "actor", section)
    return Arm(name, policy, memory, section.sampler, actor, section.attempts or most)


def _changed(config: RunConfig, key: str, section: ArmSection) -> Any:
    """The run's section ``key`` with what the arm says instead; another kind starts from its own defaults."""
    own, instead = getattr(config, key), getattr(section, key)
    kept = own.model_dump(mode="json") if instead.get("kind", own.kind) == own.kind else {}
    return getattr(parse_config({key: kept | instead}, f"evaluate.arms, {section.name!r}"), key) if instead else own


def _policy(config: RunConfig, section: ArmSection) -> Policy:
    written = section.policy
    if written in _WRITERS:
        return Policy(_WRITERS[written], written)
    if written == "sft":
        return Policy(Writer.ADAPTER, written, stage="sft")
    if written in own_policies(config.ppo):
        return Policy(Writer.ADAPTER, policy_name(config.ppo), stage="ppo")
    _refuse_other_runs_policy(config, section.name, written)
    if not Path(written).is_dir():
        words = [*_WRITERS, "sft", *own_policies(config.ppo)]
        near = difflib.get_close_matches(written, words, n=1, cutoff=0.5)
        raise ConfigError(
            f"evaluate.arms: {section.name!r}: policy {written!r}: there is no such folder"
            + (f"; did you mean {near[0]!r}?" if near else f", and it is not one of {', '.join(words)}")
        )
    name, step = checkpoint_of(Path(written))
    return Policy(Writer.ADAPTER, name, path=written, step=step)


def _refuse_other_runs_policy(config: RunConfig, name: str, policy: str) -> None:
    if policy in _policies_of_other_runs():
        rewards = " and ".join(repr(term.kind) for term in config.ppo.rewards) or "none"
        raise ConfigError(
            f"evaluate.arms: {name!r}: this run's ppo.algorithm is {config.ppo.algorithm!r} and its ppo.reward "
            f"is {rewards}, which makes the arm {policy_name(config.ppo)!r}; for another run's use "
            f"evaluate.checkpoints: {{{name}: PATH}}"
        )
