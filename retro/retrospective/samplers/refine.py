"""``refine``: the policy criticises and rewrites its own reflection (Self-Refine, arXiv 2303.17651).

We follow the paper's text, which gives the rewriting model the draft and its critique, except in two points. The model
does not see earlier rounds, whose texts would not fit small contexts. And where the paper's model says itself when to
stop, the reward model does, if there is one: rewriting goes on as long as the score rises. The authors' code was not
read.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, Self

from retro.config import ConfigError, PositiveInt, SamplerSection
from retro.models.rounds import all_of
from retro.prompts import PromptTooLongError
from retro.retrospective.revising import RevisingReflector
from retro.retrospective.samplers.base import Scorer
from retro.types import Reflection, ReflectionRequest, Reflector, Usage, derive_seed


@dataclass(frozen=True, slots=True)
class Refine:
    """A reflector that has ``policy`` rewrite each of its reflections."""

    class Options(SamplerSection):
        """The policy criticises and rewrites its own reflection, by the prompts critique.jinja and revision.jinja."""

        kind: Literal["refine"] = "refine"
        rounds: PositiveInt = 3
        """How often a reflection is rewritten, at most. With a reward model, the first text that does not score higher
        than the one before is left out and is the last; without one, the last text is kept."""

    rewrites: ClassVar[bool] = True
    """The evaluation depends on the prompts for rewriting, too."""

    policy: Reflector
    scorer: Scorer | None
    rounds: int

    @classmethod
    def from_options(cls, options: Options, policy: Reflector, scorer: Scorer | None) -> Self:
        return cls(policy, scorer, options.rounds)

    async def reflect(self, request: ReflectionRequest) -> list[Reflection]:
        """``request.count`` reflections, each with a usage of all that was read and written for it.

        The reward model's reading is not in the usage, as in Best-of-N. A reflection that does not fit into the prompt
        for the next round stays as it is.

        Raises:
            ConfigError: if the policy cannot rewrite.
            PromptTooLongError: if the episode does not fit.
        """
        if not isinstance(self.policy, RevisingReflector):
            raise ConfigError(
                f"the sampler refine needs a policy that rewrites its reflections, and {type(self.policy).__name__} "
                "has no method revise: use the sampler first or best_of"
            )
        drafts = await self.policy.reflect(request)
        return await all_of(self._refined(self.policy, request, draft) for draft in drafts)

    async def _refined(self, policy: RevisingReflector, request: ReflectionRequest, draft: Reflection) -> Reflection:
        prompt_tokens, usage = draft.usage.prompt_tokens, draft.usage
        kept = replace(draft, score=await self._score(request, draft, prompt_tokens))
        for number in range(self.rounds):
            seed = derive_seed(request.seed, "refine", draft.index, number)
            try:
                revised, spent = await policy.revise(replace(request, seed=seed), kept)
            except PromptTooLongError:
                break
            usage = usage + spent
            revised = replace(revised, score=await self._score(request, revised, prompt_tokens))
            if kept.score is not None and revised.score is not None and revised.score <= kept.score:
                break
            kept = revised
        return replace(kept, index=draft.index, usage=usage)

    async def _score(self, request: ReflectionRequest, reflection: Reflection, prompt_tokens: int) -> float | None:
        """The reward model reads the prompt about the episode, whatever the reflection was written from."""
        if self.scorer is None:
            return None
        usage = Usage(prompt_tokens, reflection.usage.completion_tokens)
        [score] = await self.scorer(request, [replace(reflection, index=0, usage=usage)])
        return score
