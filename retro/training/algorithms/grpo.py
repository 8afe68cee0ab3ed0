"""``grpo``: group relative policy optimisation (Shao et al. 2024), by TRL's ``GRPOTrainer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from retro.config import FixedKlSection, NonNegativeFloat, PositiveFloat, SampledPolicySection

if TYPE_CHECKING:
    from retro.buffer.views import Context
    from retro.config import RunConfig
    from retro.stage import Work


class GrpoOptions(SampledPolicySection):
    """Group relative policy optimisation (Shao et al. 2024), by TRL's ``GRPOTrainer``."""

    algorithm: Literal["grpo"] = "grpo"
    group: Annotated[int, Field(ge=2)] = 4
    """Responses a context."""
    clip: PositiveFloat = 0.2
    entropy_coefficient: NonNegativeFloat = 0.0
    kl: FixedKlSection = FixedKlSection()
    """k3 in the loss."""


class Grpo:
    Options = GrpoOptions

    def __init__(self, options: GrpoOptions) -> None:
        self.options = options

    @classmethod
    def from_options(cls, options: GrpoOptions) -> Grpo:
        return cls(options)

    def learn(self, config: RunConfig, work: Work, train: Sequence[Context], held_out: Sequence[Context]) -> None:
        from retro.training.rivals_grpo import run_grpo

        run_grpo(self.options, config, work, train, held_out)
