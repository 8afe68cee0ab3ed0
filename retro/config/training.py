"""The sections of the training stages: ``sft``, ``reward``, ``ppo``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from retro.config.base import (
    Decay,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from retro.config.kinds import KindSection, OneOf, resolve

Rating = Literal["delta_return", "over_control", "group"]


class AdamSection(Section):
    """The averages of gradients in AdamW (Kingma and Ba 2015, algorithm 1). The defaults are PyTorch's."""

    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients; with .95 to .98, it follows changes of their size faster."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the squared gradients' mean, so that it is never 0."""

    @property
    def betas(self) -> tuple[float, float]:
        return self.beta1, self.beta2


class OptimiserSection(Section):
    learning_rate: PositiveFloat = 1e-4
    batch_size: PositiveInt = 32
    """Examples in one optimiser step, over all processes and accumulation steps."""
    microbatch_size: PositiveInt = 32
    """Examples in one forward pass of one process."""
    warmup_fraction: Fraction = 0.05
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    adam: AdamSection = AdamSection()


class SftSection(OptimiserSection):
    rating: Rating = "delta_return"
    threshold: float = 0.0
    """Reflections with a rating above it are imitated."""
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    checkpoint_every: PositiveInt = 50


class RewardSection(OptimiserSection):
    batch_size: PositiveInt = 32
    """Groups (failed episodes, with all reflections on each) in one optimiser step, over all processes."""
    microbatch_size: PositiveInt = 32
    """Groups in one forward pass of one process."""
    loss: Literal["bradley_terry", "bce"] = "bradley_terry"
    """Pairs from one group, or the paper's accepted / rejected classifier."""
    rating: Rating = "delta_return"
    threshold: float = 0.0
    """``bce``: reflections above it are accepted. ``bradley_terry``: the least difference of ratings in a pair."""
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    eval_every: PositiveInt = 50
    """Steps between evaluations on the validation tasks; the best checkpoint is kept."""
    balance: bool = True
    """``bce``: down-sample the more frequent label to 1:1 (the paper's code)."""


class RewardTermSection(KindSection):
    """One term of the reward of a sampled reflection; the reward is the weighted sum of its terms."""

    point: ClassVar[str] = "reward"
    kind: str = "environment"
    weight: float = 1.0


def _as_terms(value: Any) -> Any:
    """Read one term as a list of one."""
    return [value] if isinstance(value, (str, Mapping, RewardTermSection)) else value


class FixedKlSection(Section):
    coefficient: PositiveFloat = 0.05
    """β: the cost of one nat of log π/π_ref, in units of the reward."""


class PolicySection(KindSection):
    """The stage ``ppo``: the keys that every algorithm has, and that the stage reads."""

    point: ClassVar[str] = "algorithm"
    discriminator: ClassVar[str] = "algorithm"
    algorithm: str = "ppo"
    steps: PositiveInt = 30
    contexts: PositiveInt = 24
    """Failed episodes in one step, over all processes."""
    group: PositiveInt = 4
    """Responses to each context."""
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 1
    """Optimiser steps in an epoch."""
    token_budget: PositiveInt = 16384
    """Tokens in one forward pass: packed sequences are accumulated up to it."""
    learning_rate: PositiveFloat = 1e-4
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    adam: AdamSection = AdamSection()
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 3
    validate_every: PositiveInt = 10
    """Steps between measurements of the true return on validation tasks; the best checkpoint is kept."""
    validation_contexts: NonNegativeInt = 64

    @classmethod
    def of_own_kinds(cls) -> type[PolicySection]:
        return SampledPolicySection

    @property
    def rewards(self) -> tuple[RewardTermSection, ...]:
        """The terms of the reward; an algorithm that learns from the buffer has none."""
        return ()

    @property
    def needs(self) -> frozenset[str]:
        """What the reward needs for each response: ``retries``, ``reward_model`` …"""
        return frozenset().union(*(resolve("reward", term.kind).needs for term in self.rewards))


class SampledPolicySection(PolicySection):
    """The keys of an algorithm that samples reflections and learns from their rewards."""

    reward: Annotated[tuple[OneOf[RewardTermSection], ...], BeforeValidator(_as_terms), Field(min_length=1)] = (
        RewardTermSection(),
    )
    """The name of a kind, or a list of terms: ``[{kind: environment, weight: 0.5}, {kind: model, weight: 0.5}]``."""
    missing_end_penalty: NonNegativeFloat = 1.0
    """Subtracted from the reward of a response that was cut at ``max_new_tokens``, before its end token."""

    @property
    def rewards(self) -> tuple[RewardTermSection, ...]:
        return self.reward
