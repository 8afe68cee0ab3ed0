"""The sections of the training stages: ``sft``, ``reward``, ``ppo``."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import model_validator

from retro.config.base import (
    Decay,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    Speed,
)
from retro.config.kinds import KindSection

Rating = Literal["delta_return", "over_control", "group"]


class AdamSection(Section):
    """What AdamW remembers of earlier gradients (Kingma and Ba 2015, algorithm 1). The defaults are PyTorch's."""

    beta1: Decay = 0.9
    """Decay of the mean of gradients."""
    beta2: Decay = 0.999
    """Decay of the mean of squared gradients; .95 to .98 follow a change of their size faster."""
    epsilon: PositiveFloat = 1e-8
    """Added to the root of the squared gradients' mean, which it keeps from 0."""

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
    """Reflections rated above it are imitated."""
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
    """``bce``: accepted above it. ``bradley_terry``: the least difference of ratings that makes a pair."""
    epochs: PositiveInt = 2
    max_steps: PositiveInt | None = None
    eval_every: PositiveInt = 50
    """Steps between evaluations on the validation tasks; the best checkpoint is kept."""
    balance: bool = True
    """``bce``: down-sample the more frequent label to 1:1 (the paper's code)."""


class KlSection(Section):
    coefficient: NonNegativeFloat = 0.05
    """β: what one nat of log π/π_ref costs, in units of the score."""
    adaptive: bool = False
    target: PositiveFloat = 0.1
    """Nats a response; ``adaptive`` only (Ziegler et al. 2019)."""
    horizon: PositiveInt = 10_000
    """Responses; ``adaptive`` only."""
    loss: Literal["none", "k1", "k3"] = "none"
    """A second KL term inside the loss. ``k1`` has no expected gradient there and is refused."""
    loss_coefficient: NonNegativeFloat = 0.0


class RewardTermSection(KindSection):
    """One term of a policy's reward; the reward is the weighted sum of its terms."""

    point: ClassVar[str] = "reward"
    kind: str = "environment"
    weight: float = 1.0


class PpoSection(Section):
    algorithm: Literal["ppo", "dpo", "grpo"] = "ppo"
    """``dpo`` and ``grpo`` are rivals on the same data, by TRL's trainers; docs/training.md says what they read of
    this section."""
    reward: Literal["model", "environment", "mix"] = "environment"
    """The learnt reward model, the actor's own retry (true ΔG), or both."""
    mix: Fraction = 0.5
    """Weight of the environment in ``mix``."""
    score: Literal["sigmoid", "standardise"] = "standardise"
    """How a Bradley-Terry score, which has no scale, becomes a reward."""
    advantage: Literal["gae", "rloo", "group"] = "gae"
    steps: PositiveInt = 30
    contexts: PositiveInt = 24
    """Failed episodes in one step, over all processes."""
    group: PositiveInt = 4
    """Responses a context."""
    epochs: PositiveInt = 4
    minibatches: PositiveInt = 1
    """Optimiser steps an epoch."""
    token_budget: PositiveInt = 16384
    """Tokens in one forward pass: packed sequences are accumulated up to it."""
    learning_rate: PositiveFloat = 1e-4
    value_learning_rate: PositiveFloat = 1e-3
    warmup_steps: NonNegativeInt = 0
    schedule: Literal["constant", "linear"] = "constant"
    weight_decay: NonNegativeFloat = 0.0
    max_grad_norm: PositiveFloat = 1.0
    adam: AdamSection = AdamSection()
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_coefficient: NonNegativeFloat = 0.5
    entropy_coefficient: NonNegativeFloat = 0.0
    whiten_advantages: bool | None = None
    """Scales a step's advantages to mean 0 and variance 1. By default this is done for ``gae``, and not for ``rloo``
    and ``group``: where most groups tie, whitening would scale up the few that differ, and the noise of the KL penalty
    with them."""
    target_kl: PositiveFloat | None = None
    """Stops a step's epochs early once the policy has moved this far from the sampler (nats a token)."""
    max_sampler_gap: Annotated[PositiveFloat | None, Speed] = 0.05
    """Nats a token: the run stops before an update on tokens whose log-probabilities by the sampler are on average
    further than this from the recomputed ones (docs/training.md). ``null``: never."""
    missing_end_penalty: NonNegativeFloat = 1.0
    """Taken from the score of a response that was cut at ``max_new_tokens`` without its end token."""
    kl: KlSection = KlSection()
    checkpoint_every: PositiveInt = 10
    keep_checkpoints: PositiveInt = 3
    validate_every: PositiveInt = 10
    """Steps between measurements of the true return on validation tasks; the best checkpoint is kept."""
    validation_contexts: NonNegativeInt = 64

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened: as the config says, or as suits the kind of advantage."""
        return self.advantage == "gae" if self.whiten_advantages is None else self.whiten_advantages

    @model_validator(mode="after")
    def _checks(self) -> PpoSection:
        if self.kl.loss == "k1":
            raise ValueError(
                "kl.loss: k1 has no expected gradient as a loss term; use k3, or kl.coefficient for k1 in the reward"
            )
        if self.advantage != "gae" and self.group < 2:
            raise ValueError(
                f"group: advantage {self.advantage!r} compares the responses of a group: it needs 2 or more"
            )
        if self.algorithm != "ppo":
            self._check_rival()
        return self

    def _check_rival(self) -> None:
        """What would not only be left unread, but mean something else than it says."""
        if self.kl.adaptive or self.kl.loss != "none" or self.target_kl is not None:
            raise ValueError(
                f"algorithm: {self.algorithm!r} has one fixed KL term, kl.coefficient: set kl.adaptive=false, "
                "kl.loss=none and target_kl=null"
            )
        if self.algorithm == "dpo" and not self.kl.coefficient:
            raise ValueError("algorithm: 'dpo' needs kl.coefficient > 0: without it nothing holds the policy")
        if self.algorithm == "dpo" and self.reward != "environment":
            raise ValueError(
                f"algorithm: 'dpo' learns from the ratings in the buffer and asks no reward {self.reward!r}: set "
                "reward=environment"
            )
        if self.algorithm == "grpo" and (self.group < 2 or not self.kl.coefficient):
            raise ValueError("algorithm: 'grpo' needs group ≥ 2 and kl.coefficient > 0")
