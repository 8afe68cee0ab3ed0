"""``best_of``: draw N reflections, score them with the reward model, keep the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

from retro.config import ConfigError, PositiveInt, SamplerSection
from retro.retrospective.samplers.base import Scorer
from retro.types import Reflection, ReflectionRequest, Reflector, Usage


@dataclass(frozen=True, slots=True)
class BestOf:
    """A reflector that keeps the reflection with the highest score among ``n`` that ``policy`` writes."""

    class Options(SamplerSection):
        """How many reflections the reward model chooses from."""

        kind: Literal["best_of"] = "best_of"
        n: PositiveInt = 8
        """How many reflections are drawn for each one that is kept."""

    policy: Reflector
    scorer: Scorer
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Best-of-N needs n ≥ 1, not {self.n}")

    @classmethod
    def from_options(cls, options: Options, policy: Reflector, scorer: Scorer | None) -> Self:
        """Raises ConfigError where there is no reward model."""
        if scorer is None:
            raise ConfigError("the sampler best_of chooses by a reward model's scores, and there is no reward model")
        return cls(policy, scorer, options.n)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections, each the best of its own ``n`` candidates."""
        candidates = await self.candidates(request)
        groups = [candidates[start : start + self.n] for start in range(0, len(candidates), self.n)]
        return [replace(best(group), index=index, usage=spent(group)) for index, group in enumerate(groups)]

    async def candidates(self, request: ReflectionRequest) -> list[Reflection]:
        """All ``n · count`` reflections, scored in one batch; the trajectory is prefilled once."""
        drawn = await self.policy.reflect(replace(request, count=self.n * request.count))
        scores = await self.scorer(request, drawn)
        return [replace(reflection, score=score) for reflection, score in zip(drawn, scores, strict=True)]


def best(candidates: Sequence[Reflection]) -> Reflection:
    """The candidate with the highest score, the first among equals."""
    return max(candidates, key=lambda reflection: float("-inf") if reflection.score is None else reflection.score)


def spent(candidates: Sequence[Reflection]) -> Usage:
    """The tokens of all candidates; their shared prompt counts once."""
    prompt = max(reflection.usage.prompt_tokens for reflection in candidates)
    return Usage(prompt, sum(reflection.usage.completion_tokens for reflection in candidates))
