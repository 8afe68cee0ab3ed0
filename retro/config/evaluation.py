"""The sections of ``export`` and ``evaluate``, and how a reflection is chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from retro.config.base import NonNegativeInt, PositiveFloat, PositiveInt, Section
from retro.config.kinds import KindSection, OneOf


class SamplerSection(KindSection):
    """How one reflection is chosen among several."""

    point: ClassVar[str] = "sampler"
    kind: str = "first"


class ExportSection(Section):
    checkpoint: Literal["best", "last"] = "best"


class ArmSection(Section):
    """One way of playing that is evaluated."""

    name: Annotated[str, Field(min_length=1)]
    policy: str
    """Who writes the reflections: ``none``, ``base`` (the untrained model), ``sft``, the run's own policy (``ppo``,
    ``ppo-env`` …), ``shuffled``, ``oracle``, ``vague``, or a path: a run, a stage, a checkpoint or a PEFT adapter."""
    memory: dict[str, Any] = {}
    """Keys that differ from the run's ``memory``."""
    sampler: OneOf[SamplerSection] = SamplerSection()
    actor: dict[str, Any] = {}
    """Keys that differ from the run's ``actor``."""
    retries: dict[str, Any] = {}
    """Keys that differ from the arm's ``actor`` in the second and all later attempts."""
    attempts: PositiveInt | None = None
    """By default ``evaluate.attempts``, which is also the most."""
    advice: NonNegativeInt = 0
    """How often the actor may ask for a reflection in the middle of an episode, as ``collect.advice``."""


def _parts(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ArmSection.model_validate(value)
    if isinstance(value, str | ArmSection):
        return value
    raise ValueError("an arm is a short name, or a mapping of its name and parts")


NameOrParts = Annotated[str | ArmSection, BeforeValidator(_parts)]


class EvaluateSection(Section):
    attempts: PositiveInt = 4
    arms: list[NameOrParts] = []
    """Short names of arms, or mappings of an arm's parts (docs/training.md lists both); empty: every arm that the run
    has the models for."""
    best_of: list[PositiveInt] = [4, 8]
    """The N of the policy's Best-of-N arms, ``…-bonN``, where ``arms`` is empty."""
    sampled_temperature: PositiveFloat = 1.0
    """The actor's temperature in the later attempts of ``retry-sampled``, and in all of ``retry-all-sampled``."""
    bootstrap: PositiveInt = 10_000
    permutations: PositiveInt = 100_000
    checkpoints: dict[str, str] = {}
    """Further arms: name → run folder, stage folder, ``checkpoint-*`` or plain PEFT adapter."""
