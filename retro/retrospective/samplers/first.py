"""``first``: the first reflection that the policy samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

from retro.config import SamplerSection
from retro.retrospective.samplers.base import Scorer
from retro.types import Reflection, ReflectionRequest, Reflector


@dataclass(frozen=True, slots=True)
class First:
    """Passes on what ``policy`` samples."""

    class Options(SamplerSection):
        """There is nothing to choose."""

        kind: Literal["first"] = "first"

    policy: Reflector

    @classmethod
    def from_options(cls, options: Options, policy: Reflector, scorer: Scorer | None) -> Self:
        return cls(policy)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections, unscored."""
        return await self.policy.reflect(request)
