"""PPO's options: what :mod:`retro.rl` reads. Importable without torch."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import model_validator

from retro.config import (
    Fraction,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    SampledPolicySection,
    Section,
    Speed,
)


class KlSection(Section):
    coefficient: NonNegativeFloat = 0.05
    """β: what one nat of log π/π_ref costs, in units of the reward."""
    adaptive: bool = False
    target: PositiveFloat = 0.1
    """Nats a response; ``adaptive`` only (Ziegler et al. 2019)."""
    horizon: PositiveInt = 10_000
    """Responses; ``adaptive`` only."""
    loss: Literal["none", "k1", "k3"] = "none"
    """A second KL term inside the loss. ``k1`` has no expected gradient there and is refused."""
    loss_coefficient: NonNegativeFloat = 0.0


class ImitationSection(Section):
    """The imitation anchor of RetroAct (NAACL 2025), whose best λ of 0, 1 and 2 was 1. Only the anchor is the paper's:
    the policy's own term is PPO's."""

    coefficient: NonNegativeFloat = 0.0
    """λ: the loss has λ times the cross-entropy, nats a token, of reflections that the stage ``sft`` imitates."""
    batch_size: PositiveInt = 32
    """Such reflections in one optimiser step, over all processes."""


class PpoOptions(SampledPolicySection):
    """Proximal policy optimisation (arXiv 1707.06347)."""

    algorithm: Literal["ppo"] = "ppo"
    advantage: Literal["gae", "rloo", "group", "chain"] = "gae"
    """``gae`` learns a value a token; ``rloo`` and ``group`` compare the responses of a group; ``chain`` compares the
    chains of a group, each of up to ``turns`` responses (Flow-GRPO, arXiv 2510.05592)."""
    turns: PositiveInt = 1
    """The most reflections in a chain: the policy reflects on a retry that failed, too, and the actor retries again.
    Needs ``advantage`` ``chain``, which rewards all reflections of a chain by their sum, or ``gae``, which rewards each
    by itself."""
    lag: Literal[0, 1] = 0
    """1: while a step learns, the actor already plays the retries of the next one, whose reflections are of the policy
    before. Needs a term of reward with retries or controls, and one turn."""
    value_learning_rate: PositiveFloat = 1e-3
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    clip: PositiveFloat = 0.2
    value_clip: PositiveFloat = 0.2
    value_coefficient: NonNegativeFloat = 0.5
    entropy_coefficient: NonNegativeFloat = 0.0
    whiten_advantages: bool | None = None
    """Scales a step's advantages to mean 0 and variance 1. By default this is done for ``gae``, and not for the others,
    which compare: where most groups tie, whitening would scale up the few that differ, and the noise of the KL penalty
    with them."""
    drop_equal_groups: bool = False
    """Leaves each group whose rewards are all equal out of the update, whose means are then over the tokens of the
    other groups (TGRL, arXiv 2510.11184)."""
    target_kl: PositiveFloat | None = None
    """Stops a step's epochs early once the policy has moved this far from the sampler (nats a token)."""
    max_sampler_gap: Annotated[PositiveFloat | None, Speed] = 0.05
    """Nats a token: the run stops before an update on tokens whose log-probabilities by the sampler are on average
    further than this from the recomputed ones (docs/training.md). ``null``: never."""
    kl: KlSection = KlSection()
    imitation: ImitationSection = ImitationSection()

    @property
    def whitens(self) -> bool:
        """Whether advantages are whitened: as the config says, or as suits the kind of advantage."""
        return self.advantage == "gae" if self.whiten_advantages is None else self.whiten_advantages

    @model_validator(mode="after")
    def _checks(self) -> PpoOptions:
        if self.kl.loss == "k1":
            raise ValueError(
                "kl.loss: k1 has no expected gradient as a loss term; use k3, or kl.coefficient for k1 in the reward"
            )
        if self.advantage != "gae" and self.group < 2:
            raise ValueError(
                f"group: advantage {self.advantage!r} compares the responses of a group: it needs 2 or more"
            )
        if self.turns > 1 and self.advantage in ("rloo", "group"):
            raise ValueError(
                f"turns: advantage {self.advantage!r} compares responses to one failed episode, and there is only one "
                "to a failed retry: use chain or gae, or turns=1"
            )
        if self.turns > 1 and "retries" not in self.needs:
            raise ValueError(
                "turns: a chain goes on from the actor's retry, so a term of reward must need retries: environment, "
                "over_control"
            )
        if self.lag and not self.needs & {"retries", "controls"}:
            raise ValueError("lag: 1 has no effect: no term of reward lets the actor play; use lag=0")
        if self.lag and self.turns > 1:
            raise ValueError("lag: the next turn of a chain is sampled after the actor's retry: use lag=0 or turns=1")
        if self.drop_equal_groups and self.group < 2:
            raise ValueError("group: drop_equal_groups would drop every group of one response: it needs 2 or more")
        return self
