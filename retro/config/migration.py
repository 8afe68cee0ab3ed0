"""Rewrites configs of earlier releases, whose sections held the keys of every kind."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from retro.config.base import Section
from retro.config.kinds import KindSection, is_kind_section, section_class
from retro.config.points import POINTS
from retro.config.run import RunConfig


class Change(NamedTuple):
    """One key that is written in another way now, or is no longer read."""

    what: str
    sure: bool
    """Whether it certainly comes from an earlier release; otherwise it may be a user's mistake."""


def migrated(tree: Mapping[str, Any]) -> tuple[dict[str, Any], list[Change]]:
    """``tree`` in the keys of this release, and the changes.

    A key is left out only if its section is of another kind, so that it was not read before either. Anything that
    cannot be translated stays, and the validation of the config reports it.
    """
    new = copy.deepcopy(dict(tree))
    changes = list(_with_terms(new.get("ppo")))
    for name, field in RunConfig.model_fields.items():
        section = new.get(name)
        if is_kind_section(field.annotation) and isinstance(section, dict):
            changes += _without_other_kinds(field.annotation, section, name)
    return new, changes


def reward_terms(reward: str, mix: float = 0.5, score: str = "standardise") -> list[dict[str, Any]]:
    """The terms that express the former ``ppo.reward``, ``ppo.mix`` and ``ppo.score``."""
    environment = {"kind": "environment", "weight": {"environment": 1.0, "model": 0.0}.get(reward, mix)}
    model = {"kind": "model", "weight": {"environment": 0.0, "model": 1.0}.get(reward, 1 - mix), "score": score}
    return [term for term in (environment, model) if term["kind"] == reward or reward == "mix"]


def _with_terms(ppo: Any) -> Iterator[Change]:
    """Replace ``reward``, ``mix`` and ``score`` by the terms of the reward."""
    if not isinstance(ppo, dict) or not (ppo.get("reward") == "mix" or {"mix", "score"} & ppo.keys()):
        return
    reward, parts = ppo.get("reward", "environment"), {key: ppo[key] for key in ("mix", "score") if key in ppo}
    if reward not in ("environment", "model", "mix") or not isinstance(parts.get("mix", 0.5), (int, float)):
        return
    for key in parts:
        del ppo[key]
    terms = reward_terms(reward, **parts)
    ppo["reward"] = reward if reward == "environment" else terms
    yield Change(f"ppo.reward, ppo.mix and ppo.score: now ppo.reward: {ppo['reward']}", sure=True)


def _without_other_kinds(base: type[KindSection], section: dict[str, Any], name: str) -> Iterator[Change]:
    """Leave out the keys that only other kinds of the section read, also in sections within it (``ppo.kl``)."""
    kind = section.get(base.discriminator, base.default_kind())
    kinds = POINTS[base.point].kinds
    if not isinstance(kind, str) or kind not in kinds:
        return
    read = section_class(base, kind)
    others = [section_class(base, other) for other in kinds if other != kind]
    yield from _left_out(section, read, others, name, kind)
    for key, field in read.model_fields.items():
        if isinstance(section.get(key), dict) and _is_section(field.annotation):
            inner = [other.model_fields[key].annotation for other in others if key in other.model_fields]
            yield from _left_out(section[key], field.annotation, filter(_is_section, inner), f"{name}.{key}", kind)


def _left_out(section: dict[str, Any], read: Any, others: Any, name: str, kind: str) -> Iterator[Change]:
    defaults = {key: field.default for other in others for key, field in other.model_fields.items()}
    for key in [key for key in section if key in defaults and key not in read.model_fields]:
        value, default = section.pop(key), defaults[key]
        if isinstance(default, Section):
            default = default.model_dump(mode="json")
        if isinstance(default, tuple):  # the reward, which was a word
            default = "environment"
        yield Change(f"{name}.{key}: {value!r} left out: {kind} does not read it", sure=value == default)


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Section)
