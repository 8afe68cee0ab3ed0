"""What PPO on one shared base costs beside others: a table a command, both sides in one run, medians after a warm-up.

    python benchmarks/ppo.py trl       --json FILE   TRL's PPOTrainer in its own environment (benchmarks/peers)
    python benchmarks/ppo.py trl --tune --json FILE  which of TRL's own settings is its fastest
    python benchmarks/ppo.py unshared  --json FILE   our own step with a prompt and a prefill for each response
    python benchmarks/ppo.py gpu       --json FILE   the same on a CUDA device, 7B: memory, speed, share of matmul rate
    python benchmarks/ppo.py best-of-n --json FILE   N responses and their scores against one

Exits with 1 if the sides do not agree on what they compute. Targets are told, and decide nothing.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import WIDTH
from benchmarks.ppo_best_of_n import measure_best_of_n
from benchmarks.ppo_device import GpuPlan, Setting
from benchmarks.ppo_gpu import GIB, measure_gpu
from benchmarks.ppo_models import (
    LLAMA_7B,
    LLAMA_7B_VOCABULARY,
    SMALL,
    SMALL_VOCABULARY,
    TINY,
    TINY_VOCABULARY,
    Sizes,
)
from benchmarks.ppo_processes import PeerSettings, Plan, measure_trl, measure_unshared, peer_python, try_settings
from retro.artifacts import write_json
from retro.cli.errors import one_line_errors

ROOT = Path(__file__).resolve().parents[1]
PEER_ENVIRONMENT = ROOT / "build" / "peers" / "trl-ppo"
SETTINGS = (
    Setting("bf16", "bfloat16", quantised=False, checkpointing=False),
    Setting("nf4", "bfloat16", quantised=True, checkpointing=True),
)
FLOAT32 = Setting("float32", "float32", quantised=False, checkpointing=False)
SIDES = {"trl": ("TRL", "retro"), "unshared": ("unshared", "retro"), "gpu": ("unshared", "retro")}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """The table that was asked for, as plain JSON."""
    if given.table in ("gpu", "best-of-n"):
        return _on_device(given)
    quick = given.quick
    sizes = Sizes(given.contexts, given.group, 24, 48, 8, 2) if quick else _sizes(given)
    row = sizes.longest + sizes.response
    microbatch = min(given.microbatch, sizes.samples)
    plan = Plan(
        sizes,
        TINY if quick else SMALL,
        TINY_VOCABULARY if quick else SMALL_VOCABULARY,
        given.token_budget or microbatch * row,
        given.repeats,
        given.threads,
        given.seed,
    )
    settings = PeerSettings(microbatch, min(given.rollout_batch, sizes.samples))
    if given.table == "unshared":
        found = measure_unshared(plan)
    elif given.tune:
        tried = try_settings(plan, settings.rollout_batch, peer_python(given.peer_env))
        fastest = min(tried, key=lambda one: float(one["wall_seconds"]))
        found = {"tried": tried, "fastest": fastest, "checks": [], "targets": []}
    else:
        found = measure_trl(plan, settings, peer_python(given.peer_env))
    return {**found, "sizes": asdict(sizes), "lengths": sizes.lengths, "plan": asdict(plan)}


def _sizes(given: argparse.Namespace) -> Sizes:
    return Sizes(given.contexts, given.group, given.shortest, given.longest, given.response, given.epochs)


def _on_device(given: argparse.Namespace) -> dict[str, Any]:
    cuda = torch.device(given.device).type == "cuda"
    shape, vocabulary = (LLAMA_7B, LLAMA_7B_VOCABULARY) if cuda else (SMALL, SMALL_VOCABULARY)
    sizes = _sizes(given)
    if given.tiny or given.quick:
        shape, vocabulary, sizes = TINY, TINY_VOCABULARY, Sizes(min(2, given.contexts), given.group, 24, 48, 8, 2)
    plan = GpuPlan(sizes, shape, vocabulary, given.token_budget, given.repeats, given.device, given.seed)
    if given.table == "gpu":
        found = measure_gpu(plan, [setting for setting in SETTINGS if setting.name in given.settings])
    else:
        found = measure_best_of_n(plan, SETTINGS[0] if cuda else FLOAT32)
    device = torch.cuda.get_device_name() if cuda else "cpu"
    return {**found, "device": device, "sizes": asdict(sizes), "plan": asdict(plan)}


def table(result: dict[str, Any]) -> Table:
    """The lines for people to read."""
    if "tried" in result:
        return _tried(result)
    sizes = Sizes(**result["sizes"])
    sides = SIDES.get(result["table"], ("N = 1", f"N = {sizes.group}"))
    drawn = Table(title=_title(result, sizes, sides))
    for name in ("", *sides, "ratio", "of single repeats", "by CPU seconds"):
        drawn.add_column(name, justify="right" if name else "left")
    for part in result.get("settings", [result]):
        setting = f"{part['setting']} " if "setting" in part else ""
        for line in part["lines"]:
            low, high = line["ratio_of_repeats"]
            drawn.add_row(
                f"{setting}{line['name']} ({line['unit']})",
                f"{line['naive']:,.3g}",
                f"{line['ours']:,.3g}",
                f"{line['ratio']:.2f}",
                f"{low:.2f} – {high:.2f}",
                f"{line['ratio_by_cpu_seconds']:.2f}",
            )
        peaks = part.get("peak_bytes")
        if peaks and peaks["shared"] is not None:
            naive, ours = peaks["unshared"], peaks["shared"]
            held = (f"{naive / GIB:.2f}", f"{ours / GIB:.2f}", f"{ours / naive:.2f}")
            drawn.add_row(f"{setting}peak memory (GiB)", *held, "", "")
        if "update" in part:
            shares = (part["update"][side]["utilisation"] for side in ("unshared", "shared"))
            drawn.add_row(f"{setting}update, share of matmul rate", *(f"{x:.1%}" for x in shares), "", "", "")
    for name, word in (("peak_bytes", "peak memory (GiB)"), ("bytes_before_models", "  of it before models")):
        if "memory" in result:
            held = {side: found[name] for side, found in result["memory"].items()}
            ratio = f"{held['ours'] / held['naive']:.2f}"
            drawn.add_row(word, f"{held['naive'] / GIB:.3f}", f"{held['ours'] / GIB:.3f}", ratio, "", "")
    return drawn


def _title(result: dict[str, Any], sizes: Sizes, sides: tuple[str, str]) -> str:
    toy = "toy sizes, measures nothing\n" if result["measures_nothing"] else ""
    tokens = f"prompts ({sizes.contexts}) of {sizes.shortest:,} – {sizes.longest:,} tokens"
    epochs = "" if result["table"] == "best-of-n" else f", {sizes.epochs} epochs"
    return (
        f"{toy}{sides[1]} beside {sides[0]}: {tokens}, {sizes.group} responses of {sizes.response} to each{epochs}\n"
        f"medians of {result['repeats']} repeats after a warm-up, "
        f"{result['machine']['threads']} thread(s), {result.get('device', 'cpu')}"
    )


def _tried(result: dict[str, Any]) -> Table:
    drawn = Table(title="TRL's own settings, a step each")
    for name in ("microbatch", "rollout batch", "samples/s", "by CPU seconds", "peak memory (GiB)"):
        drawn.add_column(name, justify="right")
    for found in result["tried"]:
        rates = [found["samples"] / found[clock] for clock in ("wall_seconds", "cpu_seconds")]
        drawn.add_row(
            str(found["microbatch"]),
            str(found["rollout_batch"]),
            *(f"{rate:.3g}" for rate in rates),
            f"{found['peak_bytes'] / GIB:.3f}",
        )
    return drawn


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tables = parser.add_subparsers(dest="table", required=True)
    of = {name: tables.add_parser(name) for name in ("trl", "unshared", "gpu", "best-of-n")}
    for name, one in of.items():
        on_device = name in ("gpu", "best-of-n")
        cuda = name == "gpu" or (name == "best-of-n" and torch.cuda.is_available())
        one.add_argument("--json", type=Path, required=True, help="where the figures go")
        one.add_argument("--repeats", type=int, default=3, help="measured laps of each side, after a warm-up")
        one.add_argument(
            "--contexts", type=int, default={"gpu": 8, "best-of-n": 1}.get(name, 2), help="prompts of a step"
        )
        one.add_argument("--group", type=int, default=8, help="responses to each")
        one.add_argument("--shortest", type=int, default=1536 if cuda else 1024 if on_device else 512, help="tokens")
        one.add_argument("--longest", type=int, default=1536 if cuda else 1024, help="tokens of the longest prompt")
        one.add_argument("--response", type=int, default=128 if cuda else 64, help="tokens of every response")
        one.add_argument("--epochs", type=int, default=4)
        one.add_argument("--seed", type=int, default=0)
        one.add_argument("--quick", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
        budget = "tokens of one forward pass of ours" + (
            "" if on_device else " (default: what a microbatch of TRL holds)"
        )
        one.add_argument("--token-budget", type=int, default=4096 if on_device else None, help=budget)
    for name in ("trl", "unshared"):
        of[name].add_argument("--threads", type=int, default=torch.get_num_threads())
        of[name].add_argument("--microbatch", type=int, default=4, help="rows of a training pass of TRL")
        of[name].add_argument("--rollout-batch", type=int, default=16, help="rows of a rollout pass of TRL")
    of["trl"].add_argument("--peer-env", type=Path, default=PEER_ENVIRONMENT, help="made on first use (pip)")
    of["trl"].add_argument("--tune", action="store_true", help="try TRL's microbatches instead, a step each")
    for name in ("gpu", "best-of-n"):
        default = "cuda" if name == "gpu" or torch.cuda.is_available() else "cpu"
        of[name].add_argument("--device", default=default)
        of[name].add_argument("--tiny", action="store_true", help="tiny sizes: shows that it runs, measures nothing")
    of["gpu"].add_argument(
        "--settings", nargs="+", choices=[s.name for s in SETTINGS], default=[s.name for s in SETTINGS]
    )
    given = parser.parse_args(arguments)
    if min(given.repeats, given.contexts, given.group, given.response, given.epochs) < 1:
        parser.error("--repeats, --contexts, --group, --response and --epochs must be 1 or more")
    if not 1 <= given.shortest <= given.longest:
        parser.error("--shortest must be 1 or more, and --longest no less")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    given = parse(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    start, load = perf_counter(), os.getloadavg()
    written = sys.argv[1:] if arguments is None else list(arguments)
    toy = given.quick or getattr(given, "tiny", False)
    result = {
        "command": shlex.join(["python", "benchmarks/ppo.py", *written]),
        "table": given.table,
        "measures_nothing": toy,
        "repeats": given.repeats,
        **measure(given),
        "machine": machine(),
        "load_average": {"before": load, "after": os.getloadavg()},
        "seconds": round(perf_counter() - start, 1),
    }
    write_json(given.json, result)
    console = Console(width=max(WIDTH, Console().width))
    console.print(table(result))
    for kind, passed, failed in (("checks", "ok  ", "FAIL"), ("targets", "met ", "MISSED")):
        for check in result[kind]:
            verdict = "(toy)" if toy and kind == "targets" else passed if check["holds"] else failed
            word = "at least" if check["at_least"] else "at most"
            told = f"{verdict} {check['figure']:.3g} ({word} {check['limit']:g})  {check['name']}"
            console.print(told, highlight=False, soft_wrap=True)
    console.print(f"{given.json} · {result['seconds']} s", highlight=False, soft_wrap=True)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
