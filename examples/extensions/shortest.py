"""A sampler of one's own: of several reflections it keeps the shortest one that came to its end.

    evaluate:
      arms:
        - {name: short, policy: sft, sampler: {kind: "examples.extensions.shortest:Shortest", options: {n: 4}}}

A sampler is a reflector around another one, the policy. The loop asks it for reflections on a failed episode, as it
would ask the policy. `scorer` gives the reward model's scores; it is None in a run without a reward model.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from retro.config import PositiveInt, Section
from retro.retrospective.samplers.base import Scorer
from retro.retrospective.samplers.best_of import spent
from retro.types import Reflection, ReflectionRequest, Reflector


@dataclass(frozen=True, slots=True)
class Shortest:
    """Draws ``n`` reflections for each one that is asked for."""

    class Options(Section):
        n: PositiveInt = 4
        """Reflections that are drawn for each one that is kept."""

    policy: Reflector
    n: int

    @classmethod
    def from_options(cls, options: Options, policy: Reflector, scorer: Scorer | None) -> Self:
        return cls(policy, options.n)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        # One request for all of them: the policy reads the trajectory once.
        drawn = await self.policy.reflect(replace(request, count=self.n * request.count))
        groups = [drawn[start : start + self.n] for start in range(0, len(drawn), self.n)]
        # The reflections are numbered anew, and the ones that are not kept were paid for, too.
        return [replace(min(group, key=cost), index=index, usage=spent(group)) for index, group in enumerate(groups)]


def cost(reflection: Reflection) -> tuple[bool, int]:
    """Sorts a reflection that was cut behind every complete one."""
    return reflection.finish_reason == "length", len(reflection.text)
