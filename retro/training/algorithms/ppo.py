"""``ppo``: our own loop, with token rewards, a KL penalty and clipped updates (docs/training.md)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

from retro.config import PolicySection
from retro.rl.options import PpoOptions
from retro.training.algorithms.base import Algorithm

if TYPE_CHECKING:
    from retro.training.policy.batch import Batch


class Ppo(Algorithm):
    """Scored groups → token rewards and advantages → epochs of clipped updates (:mod:`retro.rl.ppo`)."""

    Options = PpoOptions
    needs = frozenset({"rewards", "reference", "values"})

    def __init__(self, options: PpoOptions) -> None:
        super().__init__(options)
        self._coefficient = options.kl.coefficient
        if options.imitation.coefficient:
            self.needs |= {"imitation"}

    def learning_rates(self, section: PolicySection) -> Mapping[str, float]:
        return {"policy": section.learning_rate, "value": self.options.value_learning_rate}

    @property
    def state(self) -> Mapping[str, float]:
        return {"kl_coefficient": self._coefficient}

    def restore(self, state: Mapping[str, float]) -> None:
        self._coefficient = state["kl_coefficient"]

    def learn(self, batch: Batch) -> Mapping[str, float]:
        """
        Raises:
            SamplerGapError: if the responses do not come from the policy.
            DivergedError: on a loss or gradient that is not finite.
        """
        from retro.rl.kl import next_coefficient
        from retro.rl.ppo import build_experience, describe, equal_groups_fraction, update

        options, coefficient, anchor = self.options, self._coefficient, self.options.imitation
        batch.require_small_gap(options.max_sampler_gap)
        experience = build_experience(batch.rollout, options, coefficient, batch.reduce)
        facts = describe(experience, batch.reduce)
        facts["equal_groups_fraction"] = equal_groups_fraction(experience, batch.reduce)
        with batch.policy(entropy_gradient=options.entropy_coefficient > 0) as policy:
            learnt = update(
                experience,
                policy,
                batch.trainables,
                batch.optimiser,
                options,
                batch.seed,
                batch.reduce,
                partial(batch.imitate, anchor.coefficient, anchor.batch_size) if anchor.coefficient else None,
            )
        self._coefficient = next_coefficient(coefficient, options.kl, facts["kl"], batch.total)
        return {**learnt, **facts, "kl_coefficient": coefficient}
