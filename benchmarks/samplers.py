"""Is a sampler worth its tokens? Each one against Best-of-N at equal tokens, with a run's policy and reward model.

    python benchmarks/samplers.py runs/quickstart                                      # the run's own policy
    python benchmarks/samplers.py runs/quickstart --policy sft --ns 2 8 32 --attempts 3

It plays the run's test tasks with the first reflection, the best of several N, ``refine`` and ``backtrack``, and counts
what the retrospective side reads and generates: the reflections' prompts and tokens, and what the reward model reads. A
stopped command goes on, and episodes of the run's own evaluation are not played again. Written to
``RUN/evaluation-samplers``: ``samplers.{json,md,png}``, and what every evaluation writes.

Best-of-N is a curve: success against tokens a task, straight between two N, as if each task were given one of them by
lot. Another sampler is compared with this curve at its own tokens. All arms play the same tasks, and the 95 % interval
of the difference resamples tasks, with the tokens that they cost; it is about this training alone. An interval that
includes 0 is a tie.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

if __name__ == "__main__":
    sys.path.pop(0)  # this folder, where ``alfworld`` is not the package

from retro.artifacts import write_atomically, write_json
from retro.cli.errors import one_line_errors
from retro.config import RunConfig, load_config
from retro.evaluation.figures import save_png
from retro.evaluation.records import Record, chains, latest, read_records
from retro.evaluation.report import Paths
from retro.evaluation.results import Interval, Results
from retro.evaluation.stage import evaluate_into, recorded_before
from retro.evaluation.statistics import Floats, bootstrap_mean, outcome, tokens_of, wilson
from retro.layout import RunFolder
from retro.models.loading import resolve_device
from retro.models.threads import limit_threads
from retro.types import derive_seed

FIRST = "first"
OTHERS = ("refine", "backtrack")


@dataclass(frozen=True, slots=True)
class Played:
    """What an arm reached and spent, by task and attempt (T, K)."""

    solved: Floats
    """1.0 where the task was solved at attempt k or earlier."""
    tokens: Floats
    """What the retrospective side read and generated until attempt k."""

    @classmethod
    def of(cls, records: Sequence[Record], attempts: int) -> Played:
        """From the records of one arm, with its tasks in the order of their ids."""
        played = [chain for _, chain in sorted(chains(records).items())]
        tokens = np.zeros((len(played), attempts))
        for row, chain in enumerate(played):
            for record in chain:
                tokens[row, record.episode.trial :] += tokens_of(record) - record.episode.usage.total
        return cls(np.array([outcome(chain, attempts).success for chain in played], dtype=np.float64), tokens)


@dataclass(frozen=True, slots=True)
class Match:
    """A sampler against the curve of Best-of-N at one attempt."""

    sampler: str
    attempt: int
    """From 1."""
    tokens: float
    """The sampler's, a task."""
    success: float
    best_of: float
    """The curve's success at these tokens; at the curve's nearer end, if it does not reach them."""
    difference: float
    ci95: Interval
    matched: bool
    """Whether the curve reaches the sampler's tokens."""

    @property
    def verdict(self) -> Literal["better", "worse", "tie"]:
        low, high = self.ci95
        return "better" if low > 0 else "worse" if high < 0 else "tie"


def match(
    sampler: str, played: Played, curve: Sequence[Played], attempt: int, resamples: int = 10_000, seed: int = 0
) -> Match:
    """Compare a sampler with Best-of-N at equal tokens.

    Args:
        played: the sampler's.
        curve: of several N, on the same tasks.
        attempt: from 1.
    """
    column = attempt - 1
    tokens = np.stack([arm.tokens[:, column] for arm in (played, *curve)])  # (1 + N, T)
    solved = np.stack([arm.solved[:, column] for arm in (played, *curve)])
    count = tokens.shape[1]

    def against(tasks: Floats | slice) -> tuple[float, float]:
        spent, reached = tokens[:, tasks].mean(axis=1), solved[:, tasks].mean(axis=1)
        order = np.argsort(spent[1:], kind="stable")
        return float(reached[0]), float(np.interp(spent[0], spent[1:][order], reached[1:][order]))

    rng = np.random.default_rng(derive_seed(seed, "matched", sampler, attempt))
    drawn = [against(rng.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.quantile([mine - other for mine, other in drawn], (0.025, 0.975))
    success, best_of = against(slice(None))
    own, others = float(tokens[0].mean()), tokens[1:].mean(axis=1)
    return Match(
        *(sampler, attempt, own, success, best_of, success - best_of, (float(low), float(high))),
        matched=bool(others.min() <= own <= others.max()),
    )


def arms(policy: str, ns: Sequence[int], others: Sequence[str]) -> list[dict[str, Any]]:
    """The arms: the first reflection, Best-of-N for each N, and the other samplers."""
    best = [{"name": f"best of {n}", "policy": policy, "sampler": {"kind": "best_of", "n": n}} for n in sorted(set(ns))]
    return [
        {"name": FIRST, "policy": policy},
        *best,
        *({"name": kind, "policy": policy, "sampler": {"kind": kind}} for kind in others),
    ]


def table(played: Mapping[str, Played], matches: Sequence[Match], attempts: int) -> str:
    """What each arm reached and spent, then what each sampler is worth at equal tokens, as Markdown."""
    later = range(2, attempts + 1)
    rows = [
        f"| sampler |{''.join(f' tokens, attempt {k} | solved, % | above the first, points |' for k in later)}",
        f"|---|{'---|---|---|' * len(later)}",
    ]
    for name, arm in played.items():
        cells = []
        for column in (k - 1 for k in later):
            solved = arm.solved[:, column]
            interval = _range(wilson(int(solved.sum()), len(solved)))
            gain, above = solved - played[FIRST].solved[:, column], "–"
            if name != FIRST:
                drawn = bootstrap_mean(gain, 10_000, derive_seed(0, "above the first", name, column))
                above = f"{100 * gain.mean():+.1f} ({_range(drawn, '+')})"
            cells.append(f"{arm.tokens[:, column].mean():,.0f} | {_percent(solved.mean())} ({interval}) | {above}")
        rows.append(f"| {name} | {' | '.join(cells)} |")
    rows += [
        "",
        "| sampler | attempt | its tokens | solved, % | Best-of-N there, % | difference, points | at equal tokens |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in matches:
        beyond = "" if one.matched else " (the curve does not reach its tokens)"
        rows.append(
            f"| {one.sampler} | {one.attempt} | {one.tokens:,.0f} | {_percent(one.success)} | "
            f"{_percent(one.best_of)} | {100 * one.difference:+.1f} ({_range(one.ci95, '+')}) | {one.verdict}{beyond} |"
        )
    return "\n".join(rows) + "\n"


def _percent(share: float) -> str:
    return f"{100 * share:.1f}"


def _range(interval: Interval, sign: str = "") -> str:
    low, high = interval
    return f"{100 * low:{sign}.1f} to {100 * high:{sign}.1f}"


def success_by_tokens(played: Mapping[str, Played], attempts: int) -> Figure:
    """Success against the retrospective side's tokens, a panel for each attempt after the first."""
    figure = Figure(figsize=(1.5 + 5.5 * (attempts - 1), 4.2), layout="constrained")
    panels = figure.subplots(1, attempts - 1, squeeze=False)[0]
    for column, axes in enumerate(panels, start=1):
        points: list[tuple[float, float]] = []
        for name, arm in played.items():
            tokens, solved = arm.tokens[:, column].mean(), arm.solved[:, column]
            low, high = wilson(int(solved.sum()), len(solved))
            colour = {"refine": "#D55E00", "backtrack": "#0072B2"}.get(name, "#222222")
            axes.plot([tokens, tokens], [low, high], color=colour, linewidth=1.2, alpha=0.5)
            axes.plot([tokens], [solved.mean()], "o" if name not in OTHERS else "D", color=colour, markersize=6)
            near = {"textcoords": "offset points", "fontsize": 8, "rotation": 45, "rotation_mode": "anchor"}
            axes.annotate(name, (tokens, high), xytext=(2, 5), color=colour, **near)
            if name not in OTHERS:
                points.append((float(tokens), float(solved.mean())))
        axes.plot(*zip(*sorted(points), strict=True), color="#222222", linewidth=1.0, zorder=0)
        axes.set_title(f"solved after {column + 1} attempts, 95 % intervals", loc="left", fontsize=10)
        axes.set_xlabel("tokens a task: reflections and reward model, read and generated")
        axes.set_xlim(left=0)
        axes.set_ylim(0, 1)
        axes.margins(x=0.15)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    panels[0].set_ylabel("tasks solved")
    return figure


def _of(records: Sequence[Record], arm: str, results: Results) -> list[Record]:
    """The arm's records on the tasks and attempts of these results; an earlier call may have had more of both."""
    [tasks] = results["outcomes"][arm].values()
    own = (record for record in records if record.arm == arm and record.episode.trial < results["attempts"])
    return [record for record in own if record.episode.task.id in tasks]


def evaluation(run: Path, given: argparse.Namespace) -> RunConfig:
    """The run's config, with the samplers as the arms of its evaluation."""
    changes = [f"runs={run.parent}", f"name={run.name}", f"evaluate.attempts={given.attempts}", *given.overrides]
    if given.tasks:
        changes.append(f"environment.tasks.test={given.tasks}")
    config = load_config(run / "config.yaml", changes)
    section = type(config.evaluate).model_validate(
        {**config.evaluate.model_dump(), "arms": arms(given.policy, given.ns, given.samplers), "checkpoints": {}}
    )
    return config.model_copy(update={"evaluate": section})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a finished run")
    parser.add_argument("--policy", default="ppo", help="who writes: ppo (the run's own), sft, base, or a path")
    parser.add_argument("--ns", type=int, nargs="+", default=[2, 4, 8, 16, 32], help="the N of Best-of-N")
    parser.add_argument("--samplers", nargs="+", choices=OTHERS, default=list(OTHERS))
    parser.add_argument("--attempts", type=int, default=2)
    parser.add_argument("--tasks", type=int, help="test tasks; by default the run's")
    parser.add_argument("--out", type=Path, help="by default RUN/evaluation-samplers")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key.sub=value")
    given = parser.parse_args()
    if given.attempts < 2:
        parser.error("--attempts: a reflection is written after a failure, so there are at least 2")
    run = given.run.absolute()
    config, paths = evaluation(run, given), Paths(run, given.out or run / "evaluation-samplers")
    limit_threads(config, resolve_device(config.device))
    results = evaluate_into(config, paths, earlier=recorded_before(Paths(run, RunFolder(run).evaluation).episodes))
    records = latest(read_records(paths.episodes))
    played = {name: Played.of(_of(records, name, results), given.attempts) for name in results["arms"]}
    curve = [arm for name, arm in played.items() if name not in OTHERS]
    matches = [
        match(name, played[name], curve, attempt, config.evaluate.bootstrap, config.seed)
        for attempt in range(2, given.attempts + 1)
        for name in given.samplers
    ]
    write_json(paths.evaluation / "samplers.json", [asdict(one) | {"verdict": one.verdict} for one in matches])
    text = table(played, matches, given.attempts)
    write_atomically(paths.evaluation / "samplers.md", text)
    save_png(success_by_tokens(played, given.attempts), paths.evaluation / "samplers.png")
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
