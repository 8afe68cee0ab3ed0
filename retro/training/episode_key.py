"""What decides an episode of a collection: its digest is part of every id, so nothing is played twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

from pydantic_core import to_jsonable_python

from retro.config import RunConfig, Section, deciding
from retro.envs import deciding_options
from retro.memory.bank import identity

NAMING = (
    "environment.name",
    "model.base",
    "model.revision",
    "model.dtype",
    "model.quantization",
    "model.rope_scaling",
    "model.max_new_tokens",
    "model.temperature",
    "model.top_p",
)
"""The keys that are part of an episode's id, with the actor, the memory and the environment's options. The number of
tasks and the limit on prompts are not: raising the limit for a few long episodes must not replay the others."""
ALSO_NAMING: dict[str, Any] = {
    "model.trust_remote_code": False,
    "model.chat_template_kwargs": {},
    "model.generator": {"kind": "engine"},
    "collect.branch": "start",
    "collect.advice": 0,
}
"""Keys that were added later, with their defaults. They are part of an id only if they differ from the default, so that
earlier episodes keep their ids."""
ACTOR_NAMING: dict[str, Any] = {
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
"""Keys that are part of an id whether the actor's kind has them or not, as before each kind had its own keys, so that
earlier episodes keep their ids."""


def episode_key(config: RunConfig, inputs: Mapping[str, str]) -> str:
    """A digest of all that decides an episode: every key that is read, except those for how much is played."""
    environment = config.environment
    parts: dict[str, Any] = {
        "seed": config.seed,
        "environment.options": deciding_options(environment.name, to_jsonable_python(environment.options)),
        "memory": identity(config.memory),
        "source": config.collect.source if config.collect.source in ("base", "sft") else "adapter",
        **{f"actor.{key}": value for key, value in (ACTOR_NAMING | deciding(config.actor)).items()},
    }
    for key in (*NAMING, *ALSO_NAMING):
        found = attrgetter(key)(config)
        value = deciding(found) if isinstance(found, Section) else to_jsonable_python(found)
        if key in NAMING or value != ALSO_NAMING[key]:
            parts[key] = value
    return hashlib.sha256(json.dumps([parts, dict(inputs)], sort_keys=True).encode()).hexdigest()[:16]
