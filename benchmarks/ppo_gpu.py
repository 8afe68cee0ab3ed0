"""A PPO step on one device, shared and unshared: time, peak memory, and the share of the device's matmul rate."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from time import perf_counter
from typing import Any

import torch

from benchmarks.pipeline_ppo import Step, score_and_learn, unchanged
from benchmarks.pipeline_shared_base import SharedBaseSide
from benchmarks.pipeline_timing import Check, Line, Phases, Stopwatch, alternate
from benchmarks.pipeline_work import Work
from benchmarks.ppo_device import GpuPlan, Setting, build_bench, find_device, given_work, run_settings, settle
from benchmarks.ppo_flops import Group, Shape, update_flops
from benchmarks.ppo_models import llama_config

GIB = 2**30
ROUNDING = 0.05
"""How far the two paths may be apart in bfloat16: in nats a token, on average, and in their gradients' norm."""


class Timed:
    """A side's steps on a device: time, and the peak of its memory in bytes where the device tells it."""

    def __init__(self, side: SharedBaseSide, work: Work, device: torch.device) -> None:
        self.side, self._work, self._device = side, work, device
        self.peaks: list[int] = []
        self.step: Step | None = None

    def __call__(self, number: int) -> Phases:
        cuda = self._device.type == "cuda"
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        watch = Stopwatch(partial(settle, self._device))
        with watch.lap("sample", len(self._work.responses)):
            self.side.sample(self._work, number)
        with unchanged(self.side.trainables):
            self.step = score_and_learn(self.side, self._work, watch)
        if cuda:
            self.peaks.append(torch.cuda.max_memory_allocated(self._device))
        return watch.phases


def measure_setting(plan: GpuPlan, setting: Setting, device: torch.device, matmul_rate: float) -> dict[str, Any]:
    """One base, both paths in turn: samples/s, peak bytes, and the rate of the update."""
    config = run_settings(plan, setting)
    work = given_work(plan, config)
    bench = build_bench(plan, setting, device)
    sides = {
        name: Timed(bench.side(config, copies), work, device)
        for name, copies in (("shared", 1), ("unshared", plan.sizes.group))
    }
    for side in sides.values():
        side(plan.repeats)
        side.peaks.clear()
    line = alternate(sides["unshared"], sides["shared"], plan.repeats)
    whole = ("sample", "score", "learn")
    lines = [line("PPO step", "samples/s", whole)]
    lines += [
        line(f"  {word}", "samples/s", [phase])
        for phase, word in zip(whole, ("sampling", "scoring", "update"), strict=True)
    ]
    rates = utilisation(plan, lines[-1], matmul_rate)
    checks = list(agreement(setting, sides["unshared"].step, sides["shared"].step))
    found = {
        "setting": setting.name,
        "lines": [item.to_json() for item in lines],
        "peak_bytes": {name: max(side.peaks, default=None) for name, side in sides.items()},
        "update": rates,
        "checks": [check.to_json() for check in checks],
        "config": config.model_dump(mode="json"),
    }
    found["targets"] = [
        target.to_json() for target in _targets(setting, lines[0], found["peak_bytes"]["shared"], rates)
    ]
    if device.type == "cuda" and rates["shared"]["utilisation"] < 0.45:
        found["profile"] = profile(sides["shared"])
    return found


def _targets(setting: Setting, line: Line, peak: int | None, rates: Mapping[str, Any]) -> Iterator[Check]:
    yield Check(f"{setting.name}: samples/s, shared to unshared", line.ratio, 3.0, at_least=True)
    if setting.quantised and peak is not None:
        yield Check(f"{setting.name}: peak (GiB)", peak / GIB, 14.0)
    if not setting.quantised:
        yield Check(
            f"{setting.name}: update, share of matmul rate", rates["shared"]["utilisation"], 0.45, at_least=True
        )


def utilisation(plan: GpuPlan, update: Line, matmul_rate: float) -> dict[str, Any]:
    """FLOPs that the update needs, by its median time, over the measured rate of a matrix product."""
    sizes = plan.sizes
    shape = Shape.of(llama_config(dict(plan.shape), plan.vocabulary, 1))
    shared = [Group(length, (sizes.response,) * sizes.group) for length in sizes.lengths]
    groups = {"shared": shared, "unshared": [one for group in shared for one in group.alone()]}
    rates: dict[str, Any] = {"matmul_flops_a_second": matmul_rate}
    for name, laps in (("shared", update.ours), ("unshared", update.naive)):
        flops = sizes.epochs * update_flops(shape, groups[name], rank=16)
        seconds = sorted(lap.wall_seconds for lap in laps)[len(laps) // 2]
        rates[name] = {"flops": flops, "seconds": seconds, "utilisation": flops / seconds / matmul_rate}
    return rates


def agreement(setting: Setting, unshared: Step | None, shared: Step | None) -> Iterator[Check]:
    """That both paths computed the same forward pass and the same gradient, to the dtype's rounding."""
    assert unshared is not None and shared is not None
    apart = float((unshared.rollout.log_probs - shared.rollout.log_probs).abs().mean())
    yield Check(f"{setting.name}: mean difference of log-probabilities", apart, ROUNDING)
    ratio = unshared.metrics["grad_norm/policy"] / shared.metrics["grad_norm/policy"]
    yield Check(f"{setting.name}: relative difference of the policy's gradient norm", abs(ratio - 1), ROUNDING)


def measured_matmul_rate(device: torch.device, dtype: torch.dtype, size: int, repeats: int = 20) -> float:
    """FLOP/s of a square matrix product, the median of three rounds."""
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    rates = []
    for _ in range(4):  # the first warms up
        settle(device)
        start = perf_counter()
        for _ in range(repeats):
            left @ right
        settle(device)
        rates.append(2 * size**3 * repeats / (perf_counter() - start))
    return sorted(rates[1:])[1]


def profile(timed: Timed) -> list[dict[str, Any]]:
    """Where a step's time goes: the fifteen operators with most of the device's own time."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        timed(0)
    events = sorted(recorded.key_averages(), key=lambda event: event.self_device_time_total, reverse=True)[:15]
    return [
        {"name": event.key, "device_seconds": event.self_device_time_total / 1e6, "calls": event.count}
        for event in events
    ]


def measure_gpu(plan: GpuPlan, settings: Sequence[Setting]) -> dict[str, Any]:
    """Every setting, one base in memory at a time."""
    device = find_device(plan.device)
    cuda = device.type == "cuda"
    rate = measured_matmul_rate(device, torch.bfloat16 if cuda else torch.float32, 8192 if cuda else 256)
    found = []
    for setting in settings:
        found.append(measure_setting(plan, setting, device, rate))
        gc.collect()
        if cuda:
            torch.cuda.empty_cache()
    return {
        "settings": found,
        "checks": [check for one in found for check in one["checks"]],
        "targets": [target for one in found for target in one["targets"]],
    }
