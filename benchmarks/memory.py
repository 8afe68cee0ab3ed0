"""What a PPO update of a 7B model holds, term by term: does it fit the card? By measured bytes a token and layer.

    python benchmarks/memory.py --json FILE [--quick] [--seed 0]

One, two and four random decoder layers of Llama-7B's shape make the product's own update pass on the CPU, in bfloat16
and in 4 bits, with and without checkpointing. Every tensor's storage is counted while it lives; a law linear in tokens
and layers is fitted and carried to the whole model. Not in it: what a kernel allocates within itself, the CUDA context
(some hundred MB), and what an allocator loses between blocks. The command exits with 1 if the law misses a pass by more
than 2 %, or if the 4-bit model with checkpointing and LoRA on all linear layers does not fit.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from benchmarks import memory_measuring as measuring
from benchmarks.memory_measuring import Shape
from benchmarks.memory_sums import GIB, Batch, Configuration, terms, while_sampling
from benchmarks.pipeline import machine
from benchmarks.pipeline_timing import Check
from retro.artifacts import write_json
from retro.cli.errors import one_line_errors
from retro.config import LoraSection
from retro.models.adapters import SharedBase

LLAMA_7B = Shape(hidden=4096, intermediate=11008, heads=32, layers=32, vocabulary=32000)
SMALL = Shape(hidden=256, intermediate=704, heads=4, layers=32, vocabulary=2048)
LORAS = {
    "r = 4 on q, v": LoraSection(r=4, target_modules=["q_proj", "v_proj"]),
    "r = 16 on all linear layers": LoraSection(r=16),
}
Quantization = Literal["none", "nf4"]
Grid = Mapping[int, Sequence[int]]
MAIN: tuple[Quantization, str, bool] = ("nf4", "r = 16 on all linear layers", True)
GRID = {1: (256, 512), 2: (256, 512, 1024), 4: (256,)}
"""Layers → tokens of the passes."""
QUICK_GRID = {1: (128, 256), 2: (128, 256, 512), 4: (128,)}
HEAD_TOKENS = (1024, 2048)
BATCHES = (
    Batch("a trajectory of 16,384 tokens, 8 responses of 128", 16_384, 8, 128, trees=1, card=24 * 10**9),
    Batch("64 samples of 1,536 + 128, G = 8, six prompts a pass", 1_536, 8, 128, trees=6, card=14 * GIB),
)
"""The second: ``ppo.token_budget`` at its 16,384 takes six prompts of 2,560 tokens."""
MISFIT = 0.02
WIDTH = 120


def measure(
    shape: Shape, grid: Grid, bases: Sequence[Quantization], loras: Sequence[str], seed: int
) -> list[Configuration]:
    """Every combination of base, adapter and checkpointing."""
    found = []
    with measuring.written(shape, seed) as folder:
        for quantization in bases:
            base = measuring.load(folder, quantization, max(grid))
            found += _measure_base(base, quantization, grid, loras, seed)
    return found


def _measure_base(
    base: SharedBase, quantization: Quantization, grid: Grid, loras: Sequence[str], seed: int
) -> list[Configuration]:
    decoder = base.model.get_decoder()
    layer = measuring.stored_bytes([decoder.layers[0]])
    counted = measuring.parameter_count([decoder.layers[0]])
    ends = measuring.stored_bytes([decoder.embed_tokens, decoder.norm, base.model.get_output_embeddings()])
    cache = measuring.cache_bytes(base, 4096) / 4096
    found = []
    for name in loras:
        measuring.add_adapter(base, LORAS[name], seed)
        head = {tokens: measuring.measure_head(base, tokens) for tokens in HEAD_TOKENS}
        adapter, optimiser = measuring.adapter_bytes(base), measuring.optimiser_bytes(base)
        for checkpointing in (False, True):
            passes = []
            for depth, lengths in grid.items():
                for length in lengths:
                    measuring.use_layers(base, depth, checkpointing)
                    passes.append(measuring.measure_pass(base, depth, measuring.made_up(length - 16, 2, 8)))
            found.append(
                Configuration(
                    quantization,
                    name,
                    checkpointing,
                    tuple(passes),
                    ends=ends,
                    layer=layer,
                    parameter=layer / counted,
                    adapter=adapter,
                    optimiser=optimiser,
                    cache=cache,
                    head=head,
                )
            )
    return found


def summarise(shape: Shape, found: Sequence[Configuration]) -> dict[str, Any]:
    """Figures, sums and checks as plain JSON."""
    main = next(own for own in found if (own.quantization, own.lora, own.checkpointing) == MAIN)
    checks = [
        Check(f"{own.name}: {what}", figure, MISFIT)
        for own in found
        for what, figure in (
            ("the largest miss of the law of what is held", own.held.misfit),
            ("bend of a layer's backward pass over tokens", own.work.bend),
            ("a layer's backward pass by depth", own.work.by_depth),
        )
    ]
    checks += [
        Check(f"{main.name}: {batch.name}, {what}, GiB", term.bytes / GIB, batch.card / GIB)
        for batch in BATCHES
        for what, term in (
            ("update", terms(main, shape, batch)[-1]),
            ("sampling", while_sampling(main, shape, batch)),
        )
    ]
    return {
        "configurations": [
            {
                "name": own.name,
                "kept_bytes_a_token_and_layer": own.held.token_layer,
                "of_it_float32": own.saved_in_float32,
                "one_layers_backward_bytes_a_token": own.work.token,
                "weight_bytes_a_parameter": own.parameter,
                "cache_bytes_a_token": own.cache * shape.layers,
                "head_peak_bytes": own.head,
                "sums": {batch.name: [term.to_json() for term in terms(own, shape, batch)] for batch in BATCHES},
                "while_sampling": {batch.name: while_sampling(own, shape, batch).to_json() for batch in BATCHES},
                "passes": [item.to_json() for item in own.passes],
            }
            for own in found
        ],
        "main": main.name,
        "checks": [check.to_json() for check in checks],
    }


def tables(result: dict[str, Any]) -> list[Table]:
    """All configurations in a line each; the main one's terms for every batch."""
    cache = result["configurations"][0]["cache_bytes_a_token"]
    shape = result["shape"]
    model = f"{shape['layers']} layers of hidden size {shape['hidden']:,}: bytes a token, and the sum for two batches"
    title = f"a small shape, says nothing of a 7B: {model}" if result["quick"] else f"Llama-7B's shape, {model}"
    overview = Table(title=title, caption=f"the sampler's keys and values, all layers: {cache:,.0f} a token")
    names = ("", "kept a layer", "float32", "one layer's backward", "bytes a parameter", *(b.name for b in BATCHES))
    for name in names:
        overview.add_column(name, justify="right" if name else "left")
    for own in result["configurations"]:
        overview.add_row(
            own["name"],
            f"{own['kept_bytes_a_token_and_layer']:,.0f}",
            f"{own['of_it_float32']:.0%}",
            f"{own['one_layers_backward_bytes_a_token']:,.0f}",
            f"{own['weight_bytes_a_parameter']:.4f}",
            *(f"{lines[-1]['bytes'] / GIB:.1f} GiB" for lines in own["sums"].values()),
        )
    drawn = [overview]
    main = next(own for own in result["configurations"] if own["name"] == result["main"])
    for batch in BATCHES:
        table = Table(title=f"{main['name']}: {batch.name} (at most {batch.card / GIB:.2f} GiB)")
        for name in ("", "formula", "GiB"):
            table.add_column(name, justify="right" if name == "GiB" else "left")
        for line in (*main["sums"][batch.name], main["while_sampling"][batch.name]):
            table.add_row(line["name"], line["formula"], f"{line['bytes'] / GIB:.2f}")
        drawn.append(table)
    return drawn


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="where the figures go")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights: bytes do not depend on it")
    parser.add_argument("--quick", action="store_true", help="a small shape: shows that it runs")
    given = parser.parse_args(arguments)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    started = perf_counter()
    shape = SMALL if given.quick else LLAMA_7B
    if given.quick:
        found = measure(shape, QUICK_GRID, [MAIN[0]], [MAIN[1]], given.seed)
    else:
        found = measure(shape, GRID, ["none", "nf4"], list(LORAS), given.seed)
    result = summarise(shape, found)
    written = sys.argv[1:] if arguments is None else list(arguments)
    result = {
        "command": shlex.join(["python", "benchmarks/memory.py", *written]),
        "quick": given.quick,
        **result,
        "shape": shape.to_json(),
        "seed": given.seed,
        "machine": machine(),
        "seconds": round(perf_counter() - started, 1),
    }
    console = Console(width=max(WIDTH, Console().width))
    for table in tables(result):
        console.print(table)
    for check in result["checks"]:
        toy = given.quick and check["name"].endswith("GiB")
        verdict = "(toy)" if toy else "ok  " if check["holds"] else "FAIL"
        told = f"{verdict} {check['figure']:.3g} (at most {check['limit']:.4g})  {check['name']}"
        console.print(told, highlight=False, soft_wrap=True)
    write_json(given.json, result)
    console.print(f"{given.json} · {result['seconds']} s", highlight=False, soft_wrap=True)
    return 0 if all(check["holds"] for check in result["checks"]) else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
