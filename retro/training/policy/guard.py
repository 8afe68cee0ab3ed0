"""The guard against over-optimisation, which measures true returns on validation contexts, and its choice of the best.

``checkpoint-N/`` is the state after step N: the policy adapter in PEFT's own format, the value head of an algorithm
that has one, the optimiser's moments (safetensors, never a pickle) and ``state.json``. No generator state is kept,
since every draw is seeded by its step.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from accelerate.utils import gather_object

from retro.artifacts import write_json
from retro.buffer.views import Context
from retro.config import RunConfig
from retro.reading import read_json
from retro.rollout.attempts import Attempt
from retro.stage import with_interval
from retro.ties import exceeds, minus
from retro.training.checkpoints import STATE_FILE
from retro.training.policy.models import PolicyModels
from retro.training.policy.rollouts import Retries
from retro.training.reward_metrics import bootstrap_by_task, weighted_mean
from retro.types import Episode, Reflection, Sampling, derive_seed, from_json

logger = logging.getLogger(__name__)

REPLAYS = 2
"""How often episodes that were lost to an error are played again. An actor behind an API has already repeated each
failed call ``actor.max_retries`` times by then."""
RESAMPLES = 2000
"""Bootstrap samples of tasks behind an interval."""


@dataclass(frozen=True, slots=True)
class PolicyState:
    """The numbers of a run after ``step`` steps, saved beside its tensors."""

    step: int = 0
    algorithm: Mapping[str, float] = field(default_factory=dict)
    """What the algorithm keeps from step to step."""
    best_step: int | None = None
    best_return: float | None = None
    """The highest mean true return on the validation contexts so far. None beside a ``best_step`` means that the guard
    could not choose it."""
    best_interval: tuple[float, float] | None = None
    """The 95 % interval of ``best_return``, by bootstrap over the validation tasks. It does not account for the choice
    of the highest among several measurements."""


def save_state(state: PolicyState, folder: Path) -> None:
    write_json(folder / STATE_FILE, asdict(state))


def is_current(folder: Path) -> bool:
    """Whether the checkpoint can be continued. One of an earlier version lacks what the algorithm keeps."""
    return "algorithm" in read_json(folder / STATE_FILE)


def load_state(folder: Path) -> PolicyState:
    """The inverse of :func:`save_state`; what an older version did not save has its default."""
    return from_json(PolicyState, read_json(folder / STATE_FILE))


@dataclass(frozen=True, slots=True)
class Measurement:
    """What one policy reached on the guard's contexts: means over the episodes that were played to their end."""

    return_: float
    gain: float
    """The mean of the return minus that of the failed episode."""
    success: float
    interval: tuple[float, float] | None
    """The 95 % interval of ``return_``, by a bootstrap over tasks, since contexts of one task are not independent. None
    if there is only one task."""
    lost: int = 0
    """Episodes that ended by an error of the actor or the environment every time they were played."""

    @property
    def whole(self) -> bool:
        """Whether it can be compared with other measurements, which is so only if no context is missing."""
        return self.lost == 0

    @property
    def metrics(self) -> dict[str, float]:
        """For ``metrics.jsonl``."""
        named = {"return": self.return_, "gain": self.gain, "success": self.success}
        return {f"validation_{name}": value for name, value in (named | _bounds("return", self.interval)).items()} | {
            "validation_lost": float(self.lost)
        }


class Guard:
    """Measures the policy on fixed validation contexts: one seeded sample each, and the actor's retry with it.

    Every measurement has the same contexts, seeds and attempt ids, so two measurements differ only by the policy (and
    a runner must not answer an attempt by its id alone). Reflections are sampled as in use: greedy ones would hide a
    policy whose mode is good and whose samples are not.
    """

    def __init__(self, config: RunConfig, guarded: Sequence[Context], models: PolicyModels, retries: Retries) -> None:
        self._config, self._guarded, self._models, self._retries = config, guarded, models, retries

    def measure(self, step: int, rank: int, processes: int) -> Measurement:
        """Mean return, gain over the failed episode, and success. Each process plays its share.

        Args:
            step: how many steps the policy has learnt.

        Raises:
            ValueError: if the actor or the environment failed in every episode.
        """
        share = {slot: self._guarded[slot] for slot in range(rank, len(self._guarded), processes)}
        seeds = [[derive_seed(self._config.seed, "ppo", "validation", slot)] for slot in share]
        model = self._config.model
        sampling = Sampling(model.temperature, model.top_p, model.max_new_tokens)
        groups = self._models.sample(list(share.values()), sampling, seeds, step)
        key = (self._config.seed, "ppo", "validation")
        attempts = {
            slot: Attempt.retry(
                key, context.episode, context.path, Reflection(text, "ppo", finish_reason=written.finish_reason), slot
            )
            for (slot, context), [(written, text)] in zip(share.items(), groups, strict=True)
        }
        episodes = self._play(attempts)
        own = [
            (slot, _task(share[slot]), after.return_, minus(after.return_, share[slot].episode.return_), after.success)
            for slot, after in episodes.items()
            if not after.broken
        ]
        rows = sorted(gather_object(own))  # one order of summation, whoever played what
        errors = gather_object([str(after.info.get("error")) for after in episodes.values() if after.broken])
        if not rows:
            raise ValueError(f"the actor or the environment failed in every validation episode: {errors[0]}")
        if errors:
            logger.warning(
                "ppo: %d of %d validation episodes were lost, also when played again, so this policy cannot become "
                "the best; the first error: %s",
                len(errors),
                len(self._guarded),
                errors[0],
            )
        tasks, returns = [row[1] for row in rows], [row[2] for row in rows]
        return Measurement(
            return_=sum(returns) / len(rows),
            gain=sum(row[3] for row in rows) / len(rows),
            success=sum(row[4] for row in rows) / len(rows),
            interval=_interval(tasks, returns, derive_seed(self._config.seed, "ppo", "validation", "bootstrap")),
            lost=len(errors),
        )

    def _play(self, attempts: Mapping[int, Attempt]) -> dict[int, Episode]:
        """The episodes by slot. Lost ones are played again with the same seeds, at most :data:`REPLAYS` times."""
        played: dict[int, Episode] = {}
        for _ in range(1 + REPLAYS):
            waiting = [slot for slot in attempts if slot not in played or played[slot].broken]
            if not waiting:
                break
            episodes = self._retries.play([attempts[slot] for slot in waiting])
            played |= dict(zip(waiting, episodes, strict=True))
        return {slot: played[slot] for slot in attempts}


def choose_guarded(held_out: Sequence[Context], count: int, seed: int) -> list[Context]:
    """A seeded choice of ``count`` contexts, or all of them if there are fewer."""
    order = list(range(len(held_out)))
    random.Random(derive_seed(seed, "ppo", "guarded")).shuffle(order)
    return [held_out[index] for index in order[:count]]


def with_best(state: PolicyState, number: int, last: bool, measured: Measurement | None) -> PolicyState | None:
    """The state with step ``number`` as the best one; None if the best so far stays.

    Only a whole measurement with a return above the best so far changes the best. If no step was the best until the
    last one (there is no guard, or every measurement lost episodes), the last step becomes the best.

    Args:
        last: whether ``number`` is the run's last step.
        measured: the policy after step ``number``; None without a guard.
    """
    if measured is not None and measured.whole:
        if state.best_return is None or exceeds(measured.return_, state.best_return):
            return replace(state, best_step=number, best_return=measured.return_, best_interval=measured.interval)
        return None
    if not last or state.best_step is not None:
        return None
    if measured is not None:
        logger.warning(
            "ppo: every validation measurement lost episodes, so none could choose the best checkpoint: the last one, "
            "step %d, is used as the best",
            number,
        )
    return replace(state, best_step=number, best_return=None, best_interval=None)


def best_metrics(state: PolicyState) -> dict[str, float]:
    """The best step so far with its return and interval, for ``metrics.jsonl``; empty before there is one."""
    if state.best_step is None or state.best_return is None:
        return {}
    return {"best_step": float(state.best_step), "best_return": state.best_return} | {
        f"best_{name}": value for name, value in _bounds("return", state.best_interval).items()
    }


def log_best(state: PolicyState) -> None:
    """Log which step is the best."""
    if state.best_step is None or state.best_return is None:
        return
    shown = with_interval(state.best_return, state.best_interval)
    logger.info("ppo: the best is step %d, validation return %s", state.best_step, shown)


def log_measured(number: int, measured: Measurement) -> None:
    """Log what the policy after a step reached."""
    shown = with_interval(measured.return_, measured.interval)
    logger.info("ppo: validation after step %d: return %s, success %.3f", number, shown, measured.success)


def _task(context: Context) -> str:
    return f"{context.episode.task.environment}/{context.episode.task.id}"


def _interval(tasks: Sequence[str], values: Sequence[float], seed: int) -> tuple[float, float] | None:
    names = sorted(set(tasks))
    if len(names) < 2:
        return None
    task_of, numbers = np.array([names.index(task) for task in tasks]), np.array(values, dtype=np.float64)
    low, high = bootstrap_by_task(task_of, lambda weights: weighted_mean(numbers, weights), RESAMPLES, seed)
    return low, high


def _bounds(name: str, interval: tuple[float, float] | None) -> dict[str, float]:
    return {} if interval is None else {f"{name}_low": interval[0], f"{name}_high": interval[1]}
