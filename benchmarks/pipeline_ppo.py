"""A PPO step: one shared base and shared prefixes, against three models and a prompt a response; same data and loss."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.pipeline_shared_base import SharedBaseSide
from benchmarks.pipeline_three_models import ThreeModels
from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate
from benchmarks.pipeline_work import Side, Work, write_roles
from retro.buffer.views import Context
from retro.config import RunConfig
from retro.rl.experience import Rollout
from retro.rl.gradients import Trainable
from retro.rl.ppo import build_experience, update
from retro.types import derive_seed

TOLERANCE = 1e-4
"""How far log-probabilities (nats), values, scores and losses of the two sides may be apart, in float32."""
LOSSES = ("policy_loss", "value_loss", "entropy", "approx_kl")


@dataclass(frozen=True, slots=True)
class Step:
    """What one side computed in a step."""

    raw_scores: Sequence[float]
    """The reward model's, before they become rewards."""
    rollout: Rollout
    metrics: Mapping[str, float]
    forward_tokens: int


def measure_ppo(
    config: RunConfig, contexts: Sequence[Context], repeats: int
) -> tuple[list[Line], list[Check], dict[str, Any]]:
    """Lines, checks, and what was counted rather than timed: parameter bytes, tokens of a forward pass."""
    with TemporaryDirectory() as name:
        write_roles(config, Path(name))
        ours, naive = SharedBaseSide.load(config, Path(name)), ThreeModels(config, Path(name))
    work = Work(config, contexts, ours.draw(contexts, -1))
    computed: dict[str, Step] = {}

    def run(side: str, number: int) -> Phases:
        phases, computed[side] = make_step(ours if side == "ours" else naive, work, number)
        return phases

    for side in ("naive", "ours"):
        run(side, repeats)
    line = alternate(lambda number: run("naive", number), lambda number: run("ours", number), repeats)
    lines = [
        line("PPO step, sampling included", "samples/s", ["sample", "score", "learn"]),
        line("PPO step, sampling excluded", "samples/s", ["score", "learn"]),
        line("  sampling", "samples/s", ["sample"]),
        line("  scoring", "samples/s", ["score"]),
        line(f"  {config.ppo.epochs} epochs of update", "samples/s", ["learn"]),
    ]
    sizes = {side: parameter_bytes(of.modules) for side, of in (("naive", naive), ("ours", ours))}
    tokens = {side: step.forward_tokens for side, step in computed.items()}
    counted = {
        "parameter_bytes": {**sizes, "ratio": sizes["naive"] / sizes["ours"]},
        "forward_tokens": {**tokens, "ratio": tokens["naive"] / tokens["ours"]},
    }
    return lines, agreement(computed["naive"], computed["ours"]), counted


def make_step(side: Side, work: Work, number: int) -> tuple[Phases, Step]:
    """One step with an optimiser of its own, timed; afterwards the parameters are as they were before."""
    watch = Stopwatch()
    with watch.lap("sample", len(work.responses)):
        side.sample(work, number)
    with unchanged(side.trainables):
        step = score_and_learn(side, work, watch)
    return watch.phases, step


@contextmanager
def unchanged(trainables: Sequence[Trainable]) -> Iterator[None]:
    """Afterwards the parameters are as they were before."""
    trained = [parameter for group in trainables for parameter in group.parameters]
    before = [parameter.detach().clone() for parameter in trained]
    yield
    with torch.no_grad():
        for parameter, value in zip(trained, before, strict=True):
            parameter.copy_(value)


def score_and_learn(side: Side, work: Work, watch: Stopwatch) -> Step:
    """What follows on sampling, with an optimiser of its own: laps ``score`` and ``learn``."""
    config, samples = work.config, len(work.responses)
    with watch.lap("score", samples):
        raw = side.scores(work)
        rollout = side.rollout(work, work.rewards(raw))
    rates = {"policy": config.ppo.learning_rate, "value": config.ppo.value_learning_rate}
    with watch.lap("learn", samples):
        experience = build_experience(rollout, config.ppo, config.ppo.kl.coefficient)
        optimiser = torch.optim.AdamW(
            [{"params": list(group.parameters), "lr": rates[group.name]} for group in side.trainables],
            betas=config.ppo.adam.betas,
            eps=config.ppo.adam.epsilon,
            weight_decay=config.ppo.weight_decay,
        )
        with side.learning(work) as policy:
            seed = derive_seed(config.seed, "benchmark", "epochs")
            metrics = update(experience, policy, side.trainables, optimiser, config.ppo, seed)
    return Step(raw, rollout, metrics, side.forward_tokens(work))


def agreement(naive: Step, ours: Step) -> list[Check]:
    """The largest differences between what the two sides computed."""

    def apart(name: str) -> float:
        return _largest((getattr(naive.rollout, name) - getattr(ours.rollout, name))[ours.rollout.mask])

    words = {
        "log_probs": "policy's log-probabilities",
        "reference_log_probs": "reference's log-probabilities",
        "values": "values",
    }
    differences = {word: apart(name) for name, word in words.items()}
    differences["reward model's scores"] = _largest(torch.tensor(naive.raw_scores) - torch.tensor(ours.raw_scores))
    losses = [naive.metrics[name] - ours.metrics[name] for name in LOSSES]
    differences[f"means of {', '.join(LOSSES)} over the update"] = _largest(torch.tensor(losses))
    return [Check(f"largest difference of the {word}", figure, TOLERANCE) for word, figure in differences.items()]


def parameter_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of all parameters that are held, each counted once (tied ones, too)."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters.values())


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max())
