"""``dpo``: direct preference optimisation (Rafailov et al. 2023) on the buffer's ratings, by TRL's ``DPOTrainer``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from retro.config import FixedKlSection, PolicySection

if TYPE_CHECKING:
    from retro.buffer.views import Context
    from retro.config import RunConfig
    from retro.stage import Work


class DpoOptions(PolicySection):
    """Direct preference optimisation (Rafailov et al. 2023) on the buffer's ratings, by TRL's ``DPOTrainer``."""

    algorithm: Literal["dpo"] = "dpo"
    kl: FixedKlSection = FixedKlSection()


class Dpo:
    Options = DpoOptions

    def __init__(self, options: DpoOptions) -> None:
        self.options = options

    @classmethod
    def from_options(cls, options: DpoOptions) -> Dpo:
        return cls(options)

    def learn(self, config: RunConfig, work: Work, train: Sequence[Context], held_out: Sequence[Context]) -> None:
        from retro.training.rivals_dpo import run_dpo

        run_dpo(self.options, config, work, train, held_out)
