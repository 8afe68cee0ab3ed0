"""The memory benchmark at the smallest size, and its counting against hand-computed cases."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from benchmarks.memory import main
from benchmarks.memory_measuring import Pass
from benchmarks.memory_sums import Law, Work
from benchmarks.memory_tracking import LiveBytes, saved_bytes


def test_live_storages_are_counted_once() -> None:
    before = torch.ones(1000)
    live = LiveBytes()
    with live:
        first = before + 1  # 4,000 bytes
        view = first[:500]
        second = view.double()  # 4,000 bytes
        del first
        assert live.live == 8000  # the view keeps all of it
        del view
        assert live.live == 4000
    assert live.peak == 8000 and live.size(second) == 4000 and live.size(before) == 0


def test_what_is_saved_and_what_checkpointing_leaves() -> None:
    weight = torch.ones(10, 10, requires_grad=True)
    inputs = torch.ones(100, 10)  # 4,000 bytes

    def twice(values: torch.Tensor) -> torch.Tensor:
        return ((values @ weight).sigmoid() @ weight).sigmoid()

    found = []
    for checkpointing in (False, True):
        live = LiveBytes()
        with live, saved_bytes(live) as saved:
            start = inputs.clone()
            result = checkpoint(twice, start, use_reentrant=False) if checkpointing else twice(start)
        result.sum().backward()
        found.append(saved)
    assert found[0] == {"float32": 12000}  # the input, both sigmoids' outputs; weights count nothing
    assert found[1] == {"float32": 4000}  # the input alone


def test_a_law_is_found_again() -> None:
    grid = [(layers, tokens) for layers in (1, 2, 4) for tokens in (100, 300)]
    passes = [Pass(layers, tokens, 0, 0, 0, {}) for layers, tokens in grid]
    law = Law.fit(passes, [1000 + 20 * layers + 3 * tokens + 7 * layers * tokens for layers, tokens in grid])
    assert (law.constant, law.layer, law.token, law.token_layer) == pytest.approx((1000, 20, 3, 7))
    assert law.misfit < 1e-9
    assert law.at(32, 16_384) == pytest.approx(1000 + 640 + 49_152 + 3_670_016)
    bent = Law.fit(passes, [1000 + 7 * layers * tokens + tokens**2 * (layers == 4) for layers, tokens in grid])
    assert bent.misfit > 0.02
    with pytest.raises(ValueError, match="two depths need two lengths each"):
        Law.fit([passes[0], passes[2], passes[3], passes[4]], [1, 2, 3, 4])


def test_a_layers_work_is_a_line_over_tokens_that_does_not_depend_on_depth() -> None:
    def made(layers: int, tokens: int, extra: int) -> Pass:
        return Pass(layers, tokens, 10 * layers * tokens, 10 * layers * tokens + extra, 77, {})

    straight = [made(2, 100, 1050), made(2, 200, 2050), made(2, 400, 4050), made(4, 100, 1050), made(1, 100, 9)]
    work = Work.fit(straight)
    assert (work.token, work.constant, work.bend, work.by_depth) == (10, 50 + 77, 0, 0)
    assert work.at(1000) == 10_127
    assert Work.fit([*straight[:2], made(2, 400, 8050), straight[3]]).bend > 0.02  # a steeper moment at more tokens
    assert Work.fit([*straight[:3], made(4, 100, 3050)]).by_depth > 0.02  # as gradients that pile up would do


@pytest.mark.slow
def test_it_runs(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    assert main(["--json", str(tmp_path / "memory.json"), "--quick"]) == 0
    result = json.loads((tmp_path / "memory.json").read_text())
    plain, checkpointed = result["configurations"]
    hidden = result["shape"]["hidden"]
    assert checkpointed["kept_bytes_a_token_and_layer"] == pytest.approx(2 * hidden)  # one bfloat16 state
    assert plain["kept_bytes_a_token_and_layer"] > 20 * hidden
    assert plain["cache_bytes_a_token"] == pytest.approx(2 * 2 * hidden * result["shape"]["layers"], rel=0.01)
    for own in result["configurations"]:
        for lines in own["sums"].values():
            assert lines[-1]["bytes"] == pytest.approx(sum(line["bytes"] for line in lines[:-1]))
    assert all(check["holds"] for check in result["checks"])
    assert result["command"].startswith("python benchmarks/memory.py --json") and result["seed"] == 0
