"""PPO's guard against over-optimisation: the true return on validation contexts, whatever the reward says."""

from __future__ import annotations

import random
from collections.abc import Sequence

from accelerate.utils import gather_object

from retro.buffer.views import Context
from retro.config import RunConfig
from retro.training.ppo_models import PpoModels
from retro.training.ppo_rewards import Play, Retries
from retro.types import Reflection, Sampling, derive_seed

MEASURES = ("return", "gain", "success")


class Guard:
    """Measures the policy on fixed validation contexts: one seeded sample each, and the actor's retry with it.

    The same contexts with the same seeds every time, sampled as in use: two measurements differ by the policy alone.
    Greedy reflections would hide a policy whose mode is good and whose samples are not.
    """

    def __init__(self, config: RunConfig, guarded: Sequence[Context], models: PpoModels, retries: Retries) -> None:
        self._config, self._guarded, self._models, self._retries = config, guarded, models, retries

    def measure(self, rank: int, processes: int) -> dict[str, float]:
        """Mean return, gain over the failed episode, and success; each process plays its share.

        Raises:
            ValueError: if the actor or the environment failed in every episode.
        """
        mine = {place: self._guarded[place] for place in range(rank, len(self._guarded), processes)}
        seeds = [[derive_seed(self._config.seed, "ppo", "validation", place)] for place in mine]
        model = self._config.model
        sampling = Sampling(model.temperature, model.top_p, model.max_new_tokens)
        groups = self._models.sample(list(mine.values()), sampling, seeds)
        plays = [
            Play(context, Reflection(text, "ppo", finish_reason=written.finish_reason), place)
            for (place, context), [(written, text)] in zip(mine.items(), groups, strict=True)
        ]
        episodes = self._retries.play((self._config.seed, "ppo", "validation"), plays)
        rows = [
            (place, after.return_, after.return_ - context.episode.return_, float(after.success))
            for (place, context), after in zip(mine.items(), episodes, strict=True)
            if not after.broken
        ]
        rows = sorted(gather_object(rows))  # one order of summation, whoever played what
        if not rows:
            error = next((episode.info.get("error") for episode in episodes), "none were this process's own")
            raise ValueError(f"the actor or the environment failed in every validation episode: {error}")
        return {name: sum(row[column] for row in rows) / len(rows) for column, name in enumerate(MEASURES, 1)}


def choose_guarded(held_out: Sequence[Context], count: int, seed: int) -> list[Context]:
    """``count`` of ``held_out`` (all, if there are fewer), by a seeded choice."""
    order = list(range(len(held_out)))
    random.Random(derive_seed(seed, "ppo", "guarded")).shuffle(order)
    return [held_out[index] for index in order[:count]]
