"""The sections of ``export`` and ``evaluate``, and how a reflection is chosen."""

from __future__ import annotations

from typing import ClassVar, Literal

from retro.config.base import PositiveFloat, PositiveInt, Section
from retro.config.kinds import KindSection


class SamplerSection(KindSection):
    """How one reflection is chosen among those that the model could write."""

    point: ClassVar[str] = "sampler"
    kind: str = "first"


class ExportSection(Section):
    checkpoint: Literal["best", "last"] = "best"


ARMS = ("one-shot", "retry", "retry-sampled", "shuffled", "reflexion", "sft", "ppo", "oracle")


class EvaluateSection(Section):
    attempts: PositiveInt = 4
    arms: list[str] = []
    """Names of arms; empty: every arm that the run has the models for. ``ppo-rm`` and ``ppo-env`` name the PPO stage by
    its reward (of its rivals: ``grpo-rm``, ``grpo-env``, ``dpo``); ``-bonN`` keeps the best of N reflections by the
    reward model's score."""
    best_of: list[PositiveInt] = [4, 8]
    sampled_temperature: PositiveFloat = 1.0
    """The actor's temperature in ``retry-sampled``."""
    bootstrap: PositiveInt = 10_000
    permutations: PositiveInt = 100_000
    checkpoints: dict[str, str] = {}
    """Further arms: name → run folder, stage folder, ``checkpoint-*`` or plain PEFT adapter."""
