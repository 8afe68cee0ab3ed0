"""The pipeline's benchmark at the smallest size: that both sides compute the same thing. No time is asserted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.pipeline import main
from benchmarks.pipeline_ppo import Step, agreement, parameter_bytes
from benchmarks.pipeline_timing import Check, Lap, alternate
from retro.rl.experience import Rollout

ROOT = Path(__file__).resolve().parents[2]
TINY = ["ppo.contexts=2", "ppo.group=2", "model.max_new_tokens=6", "actor.max_tokens=6", "ppo.token_budget=512"]


@pytest.mark.slow
def test_both_sides_compute_the_same(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = [f"actor.model={tiny_model_dir}", f"model.base={tiny_model_dir}"]
    sizes = ["--repeats", "1", "--episodes", "4", "--config", str(ROOT / "configs/quickstart.yaml")]
    assert main(["--json", str(tmp_path / "pipeline.json"), *sizes, *models, *TINY]) == 0
    result = json.loads((tmp_path / "pipeline.json").read_text())
    assert len(result["checks"]) == 7 and all(check["holds"] for check in result["checks"])
    shares = [check["figure"] for check in result["checks"] if check["at_least"]]
    assert shares == [1.0, 1.0]
    assert len(result["lines"]) == 8
    for line in result["lines"]:
        assert all(len(laps) == 1 for laps in line["laps"].values())
        assert line["ratio"] == pytest.approx(line["ours"] / line["naive"])
    assert all(counts["naive"] > counts["ours"] for counts in result["counted"].values())
    assert {"cpu_count", "threads", "versions"} <= set(result["machine"])
    assert result["command"].startswith("python benchmarks/pipeline.py --json") and result["seed"] == 0


def test_too_few_failures_are_told(tiny_model_dir: Path, tmp_path: Path) -> None:
    models = [f"actor.model={tiny_model_dir}", f"model.base={tiny_model_dir}"]
    sizes = ["--repeats", "1", "--episodes", "1", "--config", str(ROOT / "configs/quickstart.yaml")]
    with pytest.raises(ValueError, match=r"1 of 1 episodes failed.*ppo.contexts=2: raise --episodes"):
        main(["--json", str(tmp_path / "pipeline.json"), *sizes, *models, *TINY])


def test_a_difference_is_seen() -> None:
    mask = torch.tensor([[True, True], [True, False]])
    zeros = torch.zeros(2, 2)
    rollout = Rollout(mask, (0, 0), (0, 1), torch.zeros(2), zeros, zeros, zeros)
    metrics = dict.fromkeys(("policy_loss", "value_loss", "entropy", "approx_kl"), 0.5)
    step = Step([0.0, 1.0], rollout, metrics, 8)
    assert all(check.holds for check in agreement(step, step))
    padding = replace(step, rollout=replace(rollout, log_probs=torch.tensor([[0.0, 0.0], [0.0, 9.0]])))
    assert all(check.holds for check in agreement(step, padding))
    for other in (
        replace(step, raw_scores=[0.0, 1.001]),
        replace(step, rollout=replace(rollout, values=torch.tensor([[0.0, 1e-3], [0.0, 0.0]]))),
        replace(step, metrics={**metrics, "value_loss": 0.501}),
    ):
        assert [check.holds for check in agreement(step, other)].count(False) == 1
    assert not Check("share", 0.97, 0.98, at_least=True).holds


def test_ratios_are_of_median_rates_and_sides_alternate() -> None:
    order: list[str] = []

    def side(name: str, seconds: list[float]) -> dict[str, Lap]:
        order.append(name)
        number = order.count(name) - 1
        return {"a": Lap(seconds[number], 1.0, 12.0), "b": Lap(0.0, 1.0, 12.0)}

    line = alternate(lambda _: side("naive", [4.0, 6.0, 12.0]), lambda _: side("ours", [1.0, 2.0, 3.0]), 3)
    assert order == ["naive", "ours", "ours", "naive", "naive", "ours"]
    both = line("work", "items/s", ["a", "b"]).to_json()
    assert (both["naive"], both["ours"], both["ratio"]) == (2.0, 6.0, 3.0)
    assert both["ratio_of_repeats"] == (3.0, 4.0) and both["ratio_by_cpu_seconds"] == 1.0


def test_a_tied_parameter_is_counted_once() -> None:
    first, second = torch.nn.Linear(3, 2, bias=False), torch.nn.Linear(3, 2, bias=False)
    second.weight = first.weight
    assert parameter_bytes([first, second]) == 24
