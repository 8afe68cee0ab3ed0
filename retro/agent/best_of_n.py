"""Best-of-N: draw N reflections, score them, keep the best."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace

from retro.types import Reflection, ReflectionRequest, Reflector, Usage

Scorer = Callable[[ReflectionRequest, Sequence[Reflection]], Awaitable[list[float]]]
"""How good each reflection on the request's episode is; higher is better. Only the order counts here."""


@dataclass(frozen=True, slots=True)
class BestOfN:
    """A reflector that keeps, of every ``n`` reflections that ``reflector`` writes, the one with the highest score."""

    reflector: Reflector
    scorer: Scorer
    n: int

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"Best-of-N needs n ≥ 1, not {self.n}")

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """The best ``request.count`` reflections, each of its own ``n`` candidates."""
        candidates = await self.candidates(request)
        groups = [candidates[start : start + self.n] for start in range(0, len(candidates), self.n)]
        return [replace(best(group), index=index, usage=spent(group)) for index, group in enumerate(groups)]

    async def candidates(self, request: ReflectionRequest) -> list[Reflection]:
        """All ``n · count`` reflections, scored: one prefill of the trajectory a model, one batch of scores."""
        drawn = await self.reflector.reflect(replace(request, count=self.n * request.count))
        scores = await self.scorer(request, drawn)
        return [replace(reflection, score=score) for reflection, score in zip(drawn, scores, strict=True)]


def best(candidates: Sequence[Reflection]) -> Reflection:
    """The highest score; among equals the first."""
    return max(candidates, key=lambda reflection: float("-inf") if reflection.score is None else reflection.score)


def spent(candidates: Sequence[Reflection]) -> Usage:
    """The tokens of all candidates; their shared prompt is read once."""
    prompt = max(reflection.usage.prompt_tokens for reflection in candidates)
    return Usage(prompt, sum(reflection.usage.completion_tokens for reflection in candidates))
