"""Two PPO steps on the CPU, each in a process of its own, in turn: against TRL's, and against our own unshared path."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch import Tensor

from benchmarks.pipeline_ppo import LOSSES, TOLERANCE
from benchmarks.pipeline_timing import Check, Lap, Line, Phases, alternate
from benchmarks.ppo_models import Sizes, random_tokens, run_config, write_models
from retro.config import ConfigError
from retro.types import derive_seed

HERE = Path(__file__).resolve().parent
PEER = HERE / "peers" / "trl_ppo.py"
PINS = HERE / "peers" / "trl-ppo.txt"
WORKER = HERE / "ppo_worker.py"
MICROBATCHES = (1, 2, 4, 8, 16)
ROLLOUT_BATCHES = (8, 4)
GRADIENT_TOLERANCE = 1e-3
"""Of the norm of the policy's gradient, relative."""


class ProcessError(RuntimeError):
    """A measured process ended before it answered; the message has the end of what it printed."""


class Measured:
    """A process that does a step when it is asked, and waits otherwise."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self._log, self._command = log, list(command)
        self.steps: list[dict[str, Any]] = []
        """What each step said, the warm-up first."""
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", **environment},
                text=True,
            )

    @cached_property
    def started(self) -> dict[str, Any]:
        """What it said when its models were loaded; several processes load at the same time."""
        return self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, what: str, number: int = 0) -> dict[str, Any]:
        """``check``, ``step`` or ``quit``, and its answer; raises ProcessError if there is none."""
        assert self.started and self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": what, "number": number}) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: there will be no answer, which is told with its log
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # libraries print while they are imported, before the conversation
            line = self._process.stdout.readline()
        if not line:
            said = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            raise ProcessError(f"{' '.join(self._command)} ended without an answer:\n" + "\n".join(said[-15:]))
        answer: dict[str, Any] = json.loads(line)
        return answer

    def lap(self, number: int) -> Phases:
        answer = self.ask("step", number)
        self.steps.append(answer)
        laps = {"step": Lap(answer["wall_seconds"], answer["cpu_seconds"], answer["samples"])}
        return laps | {name: Lap(**lap) for name, lap in answer.get("phases", {}).items()}


@dataclass(frozen=True, slots=True)
class PeerSettings:
    """What TRL is free to choose without changing what is computed: rows of a training pass, and of a rollout pass."""

    microbatch: int
    rollout_batch: int


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure, and how often."""

    sizes: Sizes
    shape: Mapping[str, int]
    vocabulary: int
    token_budget: int
    repeats: int
    threads: int
    seed: int = 0


class Workplace:
    """Model files and the work of a plan in a temporary folder, and the processes that are started on them."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self._folder = plan, folder
        sizes = plan.sizes
        self.config = run_config(
            sizes,
            "device=cpu",
            f"seed={plan.seed}",
            f"model.base={folder / 'base'}",
            f"ppo.token_budget={plan.token_budget}",
        )
        self.parameters = write_models(self.config, dict(plan.shape), plan.vocabulary, folder)
        responses = random_tokens(plan.vocabulary, [sizes.response] * sizes.samples, derive_seed(plan.seed, "given"))
        self._work = {
            "folder": str(folder),
            "config": self.config.model_dump(mode="json"),
            "prompts": random_tokens(plan.vocabulary, sizes.lengths, derive_seed(plan.seed, "prompts")),
            "responses": [responses[i : i + sizes.group] for i in range(0, sizes.samples, sizes.group)],
            "group": sizes.group,
            "response_tokens": sizes.response,
            "epochs": sizes.epochs,
            "learning_rate": self.config.ppo.learning_rate,
            "threads": plan.threads,
            "seed": plan.seed,
        }

    def own(self, copies: int) -> Measured:
        """Our own step, each prompt asked ``copies`` times."""
        name = "ours" if copies == 1 else "unshared"
        work = self._written(name, {"copies": copies})
        root = {"PYTHONPATH": str(HERE.parent)}
        return Measured([sys.executable, str(WORKER), str(work)], root, self._folder / f"{name}.log")

    def trl(self, python: Path, settings: PeerSettings, check: bool = True) -> Measured:
        work = self._written("trl", {**asdict(settings), "check": check})
        return Measured([str(python), str(PEER), str(work)], {"PYTHONPATH": ""}, self._folder / "trl.log")

    def _written(self, name: str, more: Mapping[str, Any]) -> Path:
        path = self._folder / f"{name}.json"
        path.write_text(json.dumps({**self._work, **more}), encoding="utf-8")
        return path


Start = Callable[[Workplace], Measured]


def measure_trl(plan: Plan, settings: PeerSettings, python: Path) -> dict[str, Any]:
    """Our step against TRL's."""
    return _measure(plan, "TRL", 4.0, 2.0, lambda place: place.trl(python, settings)) | {"trl": asdict(settings)}


def measure_unshared(plan: Plan) -> dict[str, Any]:
    """Our step against our own with a prompt and a prefill for each response."""
    return _measure(plan, "unshared", 3.0, None, lambda place: place.own(plan.sizes.group))


def try_settings(plan: Plan, rollout_batch: int, python: Path) -> list[dict[str, Any]]:
    """One whole step of TRL by each of several settings, each in a fresh process, and its memory.

    Every microbatch with rollouts of ``rollout_batch`` rows; then smaller rollouts with the fastest microbatch.
    """
    found: list[dict[str, Any]] = []

    def step(place: Workplace, settings: PeerSettings) -> None:
        with place.trl(python, settings, check=False) as process:
            found.append({**asdict(settings), **process.ask("step"), **process.ask("quit")})
        print(f"microbatch {settings.microbatch}, rollouts of {settings.rollout_batch}: tried", file=sys.stderr)

    with TemporaryDirectory() as name:
        place = Workplace(plan, Path(name))
        for rows in MICROBATCHES:
            if plan.sizes.samples % rows == 0:
                step(place, PeerSettings(rows, rollout_batch))
        best = min(found, key=lambda tried: float(tried["wall_seconds"]))["microbatch"]
        for rows in ROLLOUT_BATCHES:
            if rows < rollout_batch:
                step(place, PeerSettings(best, rows))
    return found


def _measure(plan: Plan, other: str, faster: float, smaller: float | None, start: Start) -> dict[str, Any]:
    with TemporaryDirectory() as name, ExitStack() as stack:
        place = Workplace(plan, Path(name))
        ours, naive = stack.enter_context(place.own(1)), stack.enter_context(start(place))
        said = {"ours": ours.ask("check"), "naive": naive.ask("check")}
        for process in (naive, ours):
            process.lap(plan.repeats)
        line = alternate(naive.lap, ours.lap, plan.repeats)
        lines = [line(f"PPO step of {plan.sizes.samples} samples", "samples/s", ["step"])]
        if other == "unshared":
            for phase, word in (("sample", "sampling"), ("score", "scoring"), ("learn", "update")):
                lines.append(line(f"  {word}", "samples/s", [phase]))
        versions = {"ours": ours.started["versions"], "naive": naive.started["versions"]}
        memory = {"naive": naive.ask("quit"), "ours": ours.ask("quit")}
        steps = {"naive": naive.steps, "ours": ours.steps}
    checks = [*agreement(said["naive"], said["ours"]), full_length(steps["ours"], plan.sizes)]
    return {
        "other": other,
        "lines": [item.to_json() for item in lines],
        "checks": [check.to_json() for check in checks],
        "targets": [check.to_json() for check in targets(lines[0], memory, faster, smaller)],
        "memory": memory,
        "forward_tokens": {side: found.get("forward_tokens") for side, found in said.items()},
        "tokens_a_step": step_tokens(plan.sizes),
        "steps": steps,
        "parameters": place.parameters,
        "versions_of_sides": versions,
        "config": place.config.model_dump(mode="json"),
    }


def step_tokens(sizes: Sizes) -> dict[str, int]:
    """Tokens of a step's sequences, with the prompts shared and without."""
    written, prompts = sizes.samples * sizes.response, sum(sizes.lengths)
    return {"shared": prompts + written, "unshared": prompts * sizes.group + written}


def targets(line: Line, memory: Mapping[str, Mapping[str, int]], faster: float, smaller: float | None) -> list[Check]:
    """What issue and documentation promise; told, never a reason to fail."""
    held = {side: found["peak_bytes"] for side, found in memory.items()}
    own = {side: found["peak_bytes"] - found["bytes_before_models"] for side, found in memory.items()}
    checks = [Check("samples/s, ours to the other's", line.ratio, faster, at_least=True)]
    if smaller is not None:
        checks.append(Check("peak memory, ours to the other's", held["ours"] / held["naive"], 1 / smaller))
        checks.append(Check("peak memory above the imports', likewise", own["ours"] / own["naive"], 1 / smaller))
    return checks


def agreement(naive: Mapping[str, Any], ours: Mapping[str, Any]) -> list[Check]:
    """The largest differences between what the sides say about the same responses."""
    words = {
        "log_probs": "policy's log-probabilities",
        "reference_log_probs": "reference's log-probabilities",
        "values": "values",
        "scores": "reward model's scores",
    }
    checks = [
        Check(
            f"largest difference of the {word}",
            _largest(torch.tensor(naive[name]) - torch.tensor(ours[name])),
            TOLERANCE,
        )
        for name, word in words.items()
    ]
    if "metrics" in naive:
        losses = torch.tensor([naive["metrics"][name] - ours["metrics"][name] for name in LOSSES])
        norms = [found["metrics"]["grad_norm/policy"] for found in (naive, ours)]
        apart = abs(norms[0] / norms[1] - 1)
        checks.append(Check("relative difference of the policy's gradient norm", apart, GRADIENT_TOLERANCE))
        checks.append(Check(f"largest difference of the means of {', '.join(LOSSES)}", _largest(losses), TOLERANCE))
    return checks


def full_length(steps: Sequence[Mapping[str, Any]], sizes: Sizes) -> Check:
    """That no response ended early."""
    written = min(step["response_tokens"] for step in steps)
    return Check("response tokens of a step", written, sizes.samples * sizes.response, at_least=True)


def _largest(differences: Tensor) -> float:
    return float(differences.abs().max())


def peer_python(folder: Path) -> Path:
    """The interpreter of TRL's environment, which is made in ``folder`` on its first use.

    Raises:
        ConfigError: if it cannot be made; the message has the installer's last lines.
    """
    python, done = folder / "bin" / "python", folder / "installed.txt"
    pins = PINS.read_text(encoding="utf-8")
    if done.is_file() and done.read_text(encoding="utf-8") == pins:
        return python
    print(f"{folder}: making the environment of {PINS.name} (once; pip downloads torch: minutes)", file=sys.stderr)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), "-m", "pip", "install", "--quiet", "-r", str(PINS)],
    ):
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        if ran.returncode:
            lines = (ran.stdout + ran.stderr).strip().splitlines()
            said = "\n".join([line for line in lines if line.startswith("ERROR")] or lines[-10:])
            raise ConfigError(
                f"{folder}: the environment of {PINS.name} cannot be made; it needs a package index (pip's) with these "
                f"versions, or is made by hand: benchmarks/peers/README.md\n{said}"
            )
    done.write_text(pins, encoding="utf-8")
    return python
