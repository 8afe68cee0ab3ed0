"""A step's rollouts: the groups of responses that the policy samples, and what they are worth to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retro.buffer.views import Context
from retro.config import RunConfig, SampledPolicySection
from retro.training.ppo_models import PpoModels
from retro.training.ppo_rewards import Play, Response, Retries, Scored, ScoreTransform, combine, whole_groups
from retro.types import Episode, Reflection, Sampling, derive_seed


@dataclass(frozen=True, slots=True)
class Rollouts:
    """Samples and scores; both depend on (seed, step, place, index) alone, whoever asks and whatever it learns with."""

    section: SampledPolicySection
    config: RunConfig
    models: PpoModels
    retries: Retries | None
    """None where the reward model alone scores."""
    transform: ScoreTransform

    def sample(self, mine: Mapping[int, Context], number: int) -> list[Response]:
        """A group of responses to every context of this process, by the policy at temperature 1.

        Args:
            mine: place in the step's global order → context.
            number: the step, from 1.
        """
        group = range(self.section.group)
        seeds = [[derive_seed(self.config.seed, "ppo", number, place, index) for index in group] for place in mine]
        sampling = Sampling(1.0, 1.0, self.config.model.max_new_tokens)
        groups = self.models.sample(list(mine.values()), sampling, seeds, number - 1)
        return [
            Response(place, index, tuple(written.ids), tuple(written.log_probs), text, written.finish_reason)
            for place, group in zip(mine, groups, strict=True)
            for index, (written, text) in enumerate(group)
        ]

    def score(self, mine: Mapping[int, Context], responses: Sequence[Response], number: int) -> Scored:
        """What each response is worth, by the reward of the config; a group that lost a retry is dropped whole."""
        section, needed = self.section, self.section.needs
        asked = [mine[response.place] for response in responses]
        learnt: Sequence[float | None] = [None] * len(responses)
        if "reward_model" in needed:
            learnt = self.models.scores(list(mine.values()), responses)
        played: Sequence[Episode | None] = [None] * len(responses)
        if self.retries is not None and "retries" in needed:
            plays = [
                Play(context, Reflection(r.text, "ppo", r.index, r.finish_reason), r.place * section.group + r.index)
                for context, r in zip(asked, responses, strict=True)
            ]
            played = self.retries.play((self.config.seed, "ppo", number), plays)
        worths = [
            combine(section, response, context, episode, score, self.transform)
            for response, context, episode, score in zip(responses, asked, played, learnt, strict=True)
        ]
        return whole_groups(responses, worths)
