"""``retro doctor``: versions, devices, and what would run where."""

from __future__ import annotations

import os
import platform
from importlib import metadata, util

from rich.console import Console
from rich.table import Table

from retro.artifacts import versions
from retro.cli.quickstart import quickstart_files

EXTRAS = {
    "psycopg": "buffer.url: postgresql+psycopg://…",
    "bitsandbytes": "quantization: nf4",
    "wandb": "trackers: [wandb]",
    "tensorboard": "trackers: [tensorboard]",
    "fastapi": "retro serve",
    "trl": "the stages of a run: retro[train]",
}
"""Optional package → the config or the command that needs it."""


def examine() -> None:
    """Print all of it. Missing packages are not errors: a line names the remedy."""
    console = Console()
    table = Table("package", "version", title="versions", title_justify="left")
    for name, version in versions().items():
        table.add_row(name, version)
    for name, needed_for in EXTRAS.items():
        table.add_row(
            name, metadata.version(name) if util.find_spec(name) else f"not installed (needed for {needed_for})"
        )
    console.print(table)
    console.print(_machine_table())
    console.print("environments, and what they need: retro env list")
    config, models = quickstart_files()
    for path in (config, models / "actor", models / "retrospective"):
        if not path.exists():
            console.print(f"{path}: missing, so retro quickstart cannot run; install retro anew", style="yellow")


def _machine_table() -> Table:
    import torch

    table = Table("what", "where", title="devices", title_justify="left")
    table.add_row(
        "CPU",
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads",
    )
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        table.add_row(f"GPU {index}", f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if torch.cuda.is_available():
        table.add_row("device: auto", "cuda")
        without = "no: train in float32 (float16 writes and scores, but does not train)"
        table.add_row("bfloat16", "yes" if torch.cuda.is_bf16_supported() else without)
    else:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "the CPU build"
        table.add_row("device: auto", f"cpu (no CUDA device seen; this torch is {built})")
        table.add_row("dtype", "float32: bfloat16 is far slower on most CPUs")
    return table
