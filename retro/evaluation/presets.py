"""The arms of a config: short names with the parts that they stand for, and arms that are written as their parts."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from retro.config import (
    ArmSection,
    ConfigError,
    PolicySection,
    RunConfig,
    SamplerSection,
    parse_config,
    parse_section,
)
from retro.config.points import POINTS
from retro.evaluation.arms import MODELS, Arm, Policy, check_models
from retro.evaluation.locate import reward_model, stage_adapter
from retro.evaluation.roles import Writer
from retro.retrospective.adapter_files import checkpoint_of

_WRITERS = {str(writer): writer for writer in Writer if writer is not Writer.ADAPTER}
_BEST_OF = "-bon"
"""Between the short name of an arm with a model and the N of its Best-of-N."""


def presets(config: RunConfig) -> dict[str, ArmSection]:
    """What the short names stand for, in the order of the results."""
    sampled = {"temperature": config.evaluate.sampled_temperature}
    parts: dict[str, dict[str, Any]] = {
        "one-shot": {"policy": "none", "attempts": 1},
        "retry": {"policy": "none", "actor": {"temperature": 0.0}},
        "retry-sampled": {"policy": "none", "retries": sampled},
        "retry-all-sampled": {"policy": "none", "actor": sampled},
        "shuffled": {"policy": "shuffled"},
        "reflexion": {"policy": "base"},
        "sft": {"policy": "sft"},
        **{name: {"policy": name} for name in own_policies(config.ppo)},
        "oracle": {"policy": "oracle"},
        "vague": {"policy": "vague"},
    }
    return {name: ArmSection(name=name, **its) for name, its in parts.items()}


def own_policies(section: PolicySection) -> list[str]:
    """The names of this run's policy: its algorithm, and its algorithm with its reward."""
    return list(dict.fromkeys([_short(section.algorithm), policy_name(section)]))


def policy_name(section: PolicySection) -> str:
    """``ppo-env``, ``grpo-rm`` …; the algorithm alone if it learns from the buffer's ratings."""
    rewards = {_reward(term.kind) for term in section.rewards}
    return "-".join([_short(section.algorithm), *(rewards if len(rewards) < 2 else ["mix"])])


def _short(kind: str) -> str:
    """``imitation`` for ``package.module:Imitation``; the name of a built-in kind as it is."""
    return kind.rpartition(":")[2].lower()


def _reward(kind: str) -> str:
    return {"model": "rm", "environment": "env"}.get(kind, _short(kind))


def available_names(config: RunConfig) -> Iterator[str]:
    """The short name of every arm that the run has the models for, in the order of the results."""
    yield from ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion")
    if stage_adapter(config, "sft"):
        yield "sft"
    if stage_adapter(config, "ppo"):
        ppo = policy_name(config.ppo)
        yield ppo
        if reward_model(config):
            yield from (f"{ppo}{_BEST_OF}{n}" for n in config.evaluate.best_of)
    yield "oracle"


def selected_arms(config: RunConfig) -> list[Arm]:
    """The arms of ``evaluate.arms`` (empty: all that the run has the models for) and of ``evaluate.checkpoints``.

    Raises:
        ConfigError: for what :func:`planned_arms` refuses, or for an arm whose model the run does not have.
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
    names = presets(config)
    arms: dict[str, Arm] = {}

    def add(section: ArmSection, key: str) -> None:
        if section.name in arms:
            raise ConfigError(f"{key}: {section.name!r} is already an arm of this run; choose another name")
        arms[section.name] = _arm(config, section)

    for entry in config.evaluate.arms or available_names(config):
        if not isinstance(entry, str):
            add(entry, "evaluate.arms")
        elif entry not in arms:  # a short name may be given twice
            add(_named(config, entry, names), "evaluate.arms")
    for name, path in config.evaluate.checkpoints.items():
        if n := _split(name)[1]:  # earlier versions took the sampler from this name
            raise ConfigError(
                f"evaluate.checkpoints: {name!r}: a name does not choose the sampler; write it into evaluate.arms: "
                f"{{name: {name}, policy: {path}, sampler: {{kind: best_of, n: {n}}}}}"
            )
        add(ArmSection(name=name, policy=path), "evaluate.checkpoints")
    return list(arms.values())


def best_of(arm: ArmSection, n: int) -> ArmSection:
    """``arm`` with the best of ``n`` reflections by the reward model's score, under a name of its own."""
    sampler = parse_section(SamplerSection, {"kind": "best_of", "n": n} if n > 1 else "first")
    return arm.model_copy(update={"name": f"{arm.name}{_BEST_OF}{n}", "sampler": sampler})


def _split(name: str) -> tuple[str, int]:
    """``sft-bon8`` → ``sft``, 8; a name without Best-of-N → itself, 0."""
    plain, _, n = name.rpartition(_BEST_OF)
    return (plain, int(n)) if plain and n.isdecimal() and int(n) else (name, 0)


def _named(config: RunConfig, name: str, names: dict[str, ArmSection]) -> ArmSection:
    """The arm that a short name, with or without Best-of-N, stands for."""
    plain, n = _split(name)
    found = names.get(plain)
    if found and not n:
        return found
    if found and _WRITERS.get(found.policy, Writer.ADAPTER) in MODELS:
        return best_of(found, n)
    _refuse_other_runs_policy(config, name, plain)
    raise ConfigError(
        f"evaluate.arms: {name!r} is not an arm; {_nearest(name, names, '? ')}there are {', '.join(names)}, -bonN "
        "behind those that a model writes for, and arms of your own: {name: …, policy: …}"
    )


def _nearest(word: str, words: Iterable[str], end: str) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}{end}" if near else ""


def _arm(config: RunConfig, section: ArmSection) -> Arm:
    name, most = section.name, config.evaluate.attempts
    policy = _policy(config, section)
    if section.sampler.kind != "first" and policy.writer not in MODELS:
        raise ConfigError(f"evaluate.arms: {name!r}: only an arm whose reflections are sampled has a sampler")
    if section.advice and policy.writer is Writer.NONE:
        raise ConfigError(f"evaluate.arms: {name!r}: advice: with policy none nobody writes it; choose a policy")
    if section.advice and section.sampler.kind != "first":
        raise ConfigError(
            f"evaluate.arms: {name!r}: advice is the policy's first reflection: leave out either advice or the sampler"
        )
    if section.attempts is not None and section.attempts > most:
        raise ConfigError(
            f"evaluate.arms: {name!r}: attempts: {section.attempts} is more than evaluate.attempts, {most}"
        )
    memory = _changed("memory", config.memory, section.memory, name)
    actor = _changed("actor", config.actor, section.actor, name)
    retries = _changed("actor", actor, section.retries, f"{name}: retries")
    return Arm(name, policy, memory, section.sampler, actor, retries, section.attempts or most, section.advice)


def _changed(key: str, own: Any, changes: dict[str, Any], name: str) -> Any:
    """The section ``own`` with the keys that an arm changes; another kind starts from its own defaults."""
    kept = own.model_dump(mode="json") if changes.get("kind", own.kind) == own.kind else {}
    return getattr(parse_config({key: kept | changes}, f"evaluate.arms, {name!r}"), key) if changes else own


def _policy(config: RunConfig, section: ArmSection) -> Policy:
    written, own = section.policy, own_policies(config.ppo)
    if written in _WRITERS:
        return Policy(_WRITERS[written], written)
    if written == "sft":
        return Policy(Writer.ADAPTER, written, stage="sft")
    if written in own:
        return Policy(Writer.ADAPTER, policy_name(config.ppo), stage="ppo")
    _refuse_other_runs_policy(config, section.name, written)
    if not Path(written).is_dir():
        words = [*_WRITERS, "sft", *own]
        raise ConfigError(
            f"evaluate.arms: {section.name!r}: policy {written!r}: there is no such folder; "
            + (_nearest(written, words, "?") or f"it is not one of {', '.join(words)} either")
        )
    name, step = checkpoint_of(Path(written))
    return Policy(Writer.ADAPTER, name, path=written, step=step)


def _refuse_other_runs_policy(config: RunConfig, name: str, policy: str) -> None:
    algorithm, _, reward = policy.partition("-")
    if algorithm in POINTS["algorithm"].kinds and reward in {"", "mix", *map(_reward, POINTS["reward"].kinds)}:
        rewards = " and ".join(repr(term.kind) for term in config.ppo.rewards) or "none"
        raise ConfigError(
            f"evaluate.arms: {name!r}: this run's ppo.algorithm is {config.ppo.algorithm!r} and its ppo.reward "
            f"is {rewards}, which makes the arm {policy_name(config.ppo)!r}; for another run's use "
            f"evaluate.checkpoints: {{{name}: PATH}}"
        )
