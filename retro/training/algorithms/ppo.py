"""``ppo``: our own loop, with token rewards, a KL penalty and clipped updates (docs/training.md)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from retro.rl.options import PpoOptions

if TYPE_CHECKING:
    from retro.buffer.views import Context
    from retro.config import RunConfig
    from retro.stage import Work


class Ppo:
    Options = PpoOptions

    def __init__(self, options: PpoOptions) -> None:
        self.options = options

    @classmethod
    def from_options(cls, options: PpoOptions) -> Ppo:
        return cls(options)

    def learn(self, config: RunConfig, work: Work, train: Sequence[Context], held_out: Sequence[Context]) -> None:
        from retro.training.ppo import PpoTrainer

        with closing(PpoTrainer(self.options, config, work, train, held_out)) as trainer:
            trainer.run()
